"""Chat templates, rendered as transformers renders them: calibration and chats must see the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateSyntaxError

from kvfold.plugins.contract.errors import RequestError
from kvfold.plugins.contract.template_environment import RefusalError, compile_template, undeclared_names
from kvfold.plugins.contract.template_text import TemplateText, by_template, written_by_template
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig

Message = Mapping[str, Any]

# Names that templates know, and some put into a control token: `<|{{ message.role }}|>`. Any other is text.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")


# A template must render one of these, and may refuse the other.
SMALL_CHATS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hello"},),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Who are you?"},
    ),
)


def render_chat(
    config: TokenizerConfig,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> TemplateText:
    """The text of a conversation, and what of it the template wrote; it runs in jinja2's sandbox.

    Args:
        config: holds the template.
        messages: the conversation. Its texts are text, whatever control tokens they spell.
        add_generation_prompt: end with what begins a reply.
        tools: definitions for a template that knows tools (`takes_tools`); text like the messages'.

    Raises:
        RequestError: the model has no chat template, or the template refuses the messages.
    """
    if config.chat_template is None:
        raise RequestError("this model has no chat template; give it a plain prompt instead of messages")
    try:
        return _render(config.chat_template, config.special_tokens, messages, add_generation_prompt, tools)
    except Exception as error:  # a template is a program: it can fail in any way
        raise RequestError(f"the chat template refuses these messages: {error}") from error


def takes_tools(template: str) -> bool:
    """Whether a chat template writes the definitions of tools into the prompt by itself."""
    try:
        return "tools" in undeclared_names(template)
    except TemplateSyntaxError:  # what renders it says so
        return False


@lru_cache(maxsize=8)
def takes_system(template: str) -> bool:
    """Whether a chat template shows the model what a system message says, rather than refuse or drop it."""
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}
    try:
        return "Be brief." in _render(template, {}, (system, user), add_generation_prompt=True)
    except Exception:  # a template is a program: it can fail in any way
        return False


def check_chat_template(template: str, special_tokens: Mapping[str, str]) -> None:
    """Find out whether a template works, before anything is built on it.

    Raises:
        RequestError: it does not parse, fails while it renders a small chat, or refuses each of them.
    """
    refused: list[Exception] = []
    for chat in SMALL_CHATS:
        try:
            _render(template, special_tokens, chat, add_generation_prompt=True)
        except RefusalError as error:
            refused.append(error)
        except Exception as error:  # a template is a program: it can fail in any way
            raise RequestError(f"the chat template is broken: {_describe(error)}") from error
    if len(refused) == len(SMALL_CHATS):
        raise RequestError(f"the chat template refuses every small chat: {refused[0]}")


def _render(
    template: str,
    special_tokens: Mapping[str, str],
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> TemplateText:
    text = compile_template(template).render(
        {name: by_template(token) for name, token in special_tokens.items()},
        messages=[_mark(message) for message in messages],
        tools=[_mark_value(tool) for tool in tools] or None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
    )
    return TemplateText(text, written_by_template(text))


def _mark(message: Message) -> Message:
    """A message whose texts are known to be its own, but for the name of a role that templates know."""
    marked = {key: _mark_value(value) for key, value in message.items()}
    if marked.get("role") in ROLES:
        marked["role"] = by_template(marked["role"])
    return marked


def _mark_value(value: Any) -> Any:
    if isinstance(value, str):
        return TemplateText(value)
    if isinstance(value, Mapping):
        return {key: _mark_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        marked = map(_mark_value, value)
        return list(marked) if isinstance(value, list) else tuple(marked)
    return value


def _describe(error: Exception) -> str:
    """Where it does not parse, or what went wrong."""
    where = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
    return f"{where}{error}"
