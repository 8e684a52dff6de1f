"""Bodies of /tokenize and /detokenize, in vLLM's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kvfold.runtime.server.wire.completion_request import check_tokens
from kvfold.runtime.server.wire.fields.ask import ToolUse
from kvfold.runtime.server.wire.fields.read_body import read_body, wrong
from kvfold.runtime.server.wire.fields.template_messages import TemplateMessage, template_messages
from kvfold.runtime.server.wire.fields.tool_fields import tool_use


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    tools: list[Any] | None = None


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens."""

    tokens: list[Any]
    model: str | None = None


@dataclass(frozen=True)
class TokenizeAsk:
    """What to tokenize.

    Attributes:
        model: the model's name; None for the one that is served.
        prompt: a raw text; None where there are messages.
        messages: a conversation.
        begin: a raw text begins with the model's BOS token, where it has one.
        generate: the conversation ends where the model's reply begins.
        texts: tell the tokens' texts too.
        tools: what the template is told of.
        ignored: names of fields that nobody here knows.
    """

    model: str | None
    prompt: str | None
    messages: list[TemplateMessage]
    begin: bool
    generate: bool
    texts: bool
    tools: ToolUse
    ignored: tuple[str, ...]


def tokenize_ask(fields: Mapping[str, Any], _: Mapping[str, str]) -> TokenizeAsk:
    """What to tokenize; raises HttpError 400."""
    body, ignored = read_body(fields, TokenizeBody)
    if (body.prompt is None) == (body.messages is None):
        raise wrong("must be there, or else messages; send one of them", "prompt")
    messages = [] if body.messages is None else template_messages(body.messages)
    return TokenizeAsk(
        body.model,
        body.prompt,
        messages,
        begin=body.add_special_tokens is not False,
        generate=body.add_generation_prompt is not False,
        texts=bool(body.return_token_strs),
        tools=tool_use(body.tools, None, None, "chat"),
        ignored=ignored,
    )


def detokenize_ask(
    fields: Mapping[str, Any], _: Mapping[str, str]
) -> tuple[str | None, list[int], tuple[str, ...]]:
    """The model's name, the tokens, and names of fields that nobody here knows; raises HttpError 400."""
    body, ignored = read_body(fields, DetokenizeBody)
    return body.model, check_tokens(body.tokens, "tokens"), ignored
