"""Chat templates, rendered as transformers renders them: calibration and chats must see the same text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvfold.plugins.contract.errors import RequestError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig

Message = Mapping[str, Any]


def render_chat(
    config: TokenizerConfig, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    """The text of a conversation; the template runs in jinja2's sandbox.

    Raises:
        RequestError: the model has no chat template, or the template refuses the messages.
    """
    if config.chat_template is None:
        raise RequestError("this model has no chat template; give it a plain prompt instead of messages")
    try:
        return _compile(config.chat_template).render(
            config.special_tokens,
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, TypeError) as error:
        raise RequestError(f"the chat template refuses these messages: {error}") from error


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; for a reader it is only its body."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body between the tags, unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
