"""A conversation as the model reads it: rendered by the chat template, then encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvfold.plugins.contract.errors import RequestError
from kvfold.plugins.contract.template_text import by_template, written_by_template
from kvfold.runtime.text.detokenize import decode_after
from kvfold.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from kvfold.plugins.contract.chat_template import Message


@dataclass(frozen=True)
class EncodedChat:
    """A conversation.

    Attributes:
        text: as rendered (a TemplateText).
        token_ids: the tokens that stand for it; those of a reply are the model's own choice.
        shared_length: of these, a leading system message; 0 where there is none or its end is no border of
            the tokens.
        borders: where its last messages begin, in tokens, growing; an edited one parts from this chat there.
    """

    text: str
    token_ids: list[int]
    shared_length: int = 0
    borders: tuple[int, ...] = ()


NOTHING = EncodedChat("", [])
# How many of a chat's messages, from the end, begin at a border that is worth to be known.
LAST_BORDERS = 4


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    known: EncodedChat | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> EncodedChat:
    """A conversation that the model is to go on with; what its messages spell is text, never a control token.

    Where its text goes on from a known one, only what was added is encoded: a reply's own tokens
    stay as the model chose them. Tools are for a chat template that writes them by itself.

    Raises:
        RequestError: the model has no chat template, or the template refuses the messages.
    """
    text = tokenizer.render(messages, add_generation_prompt=True, tools=tools)
    if known is not None and known.text and _goes_on_from(known.text, text):
        ids = known.token_ids + _encode_behind(tokenizer, known.token_ids[-1:], text[len(known.text) :])
    else:
        ids = tokenizer.encode_rendered(text)
    shared = _shared_length(tokenizer, messages, tools, text, ids)
    return EncodedChat(text, ids, shared, _borders(tokenizer, ids))


def add_reply(tokenizer: Tokenizer, rendered: str, token_ids: list[int], reply: Sequence[int]) -> EncodedChat:
    """A conversation with the model's reply, which stays as it was sampled.

    Args:
        tokenizer: of the model.
        rendered: the conversation before the reply.
        token_ids: of all of it.
        reply: of the reply alone.
    """
    length = len(token_ids) - len(reply)
    before = token_ids[max(0, length - 1) : length]
    text, end = decode_after(tokenizer, before, reply), ""
    if reply and reply[-1] in tokenizer.eos_token_ids:
        spoken = decode_after(tokenizer, before, reply[:-1])
        text, end = (spoken, text[len(spoken) :]) if text.startswith(spoken) else (text, "")
    return EncodedChat(rendered + text + by_template(end), token_ids)


def _encode_behind(tokenizer: Tokenizer, last: list[int], text: str) -> list[int]:
    """Tokens of a text behind another: a control token may take in white space that follows it."""
    spelled = next((spelling for spelling, index in tokenizer.added_tokens.items() if last == [index]), None)
    if spelled is not None:
        ids = tokenizer.encode_rendered(by_template(spelled) + text)
        if ids[:1] == last:
            return ids[1:]
    return tokenizer.encode_rendered(text)


def _goes_on_from(known: str, text: str) -> bool:
    """Whether a text begins with a known one, and its template wrote what stands for control tokens there."""
    if not text.startswith(known):
        return False
    before, now = (int.from_bytes(written_by_template(part)) for part in (known, text[: len(known)]))
    return before & ~now == 0


def _borders(tokenizer: Tokenizer, ids: list[int]) -> tuple[int, ...]:
    """Each message begins as the reply does: with the last control token of the prompt."""
    control = set(tokenizer.added_tokens.values())
    opening = next((token for token in reversed(ids) if token in control), None)
    places = [place for place, token in enumerate(ids) if token == opening]
    return tuple(places[:-1][-LAST_BORDERS:])


def _shared_length(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    text: str,
    ids: list[int],
) -> int:
    if len(messages) < 2 or messages[0].get("role") != "system":
        return 0
    try:
        system = tokenizer.render(messages[:1], add_generation_prompt=False, tools=tools)
    except RequestError:  # some templates refuse a system message alone: then its end is unknown
        return 0
    shared = tokenizer.encode_rendered(system) if text.startswith(system) else []
    return len(shared) if ids[: len(shared)] == shared else 0
