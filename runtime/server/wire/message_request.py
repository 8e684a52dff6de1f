"""The body of Anthropic's messages as an Ask and messages for the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from kvfold.runtime.server.wire.fields.ask import Ask, Shape, ToolUse
from kvfold.runtime.server.wire.fields.read_body import describe, read_body, wrong
from kvfold.runtime.server.wire.fields.sampling_fields import checked_params, service_fields, token_limit
from kvfold.runtime.server.wire.fields.shape_fields import schema_shape
from kvfold.runtime.server.wire.fields.template_messages import TemplateMessage, call_of_tool, text_field
from kvfold.runtime.server.wire.fields.tool_fields import tool_use

ROLES = ("user", "assistant", "system")
# Anthropic's default.
TEMPERATURE = 1.0
# Claude Code begins its system prompt with this and a number that changes with every request: with it, no
# prefix would ever be in the cache.
BOOKKEEPING = "x-anthropic-billing-header"


class PromptBody(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of POST /v1/messages/count_tokens, and the first half of those of /v1/messages."""

    messages: list[Any]
    model: str | None = None
    system: Any = None
    tools: list[Any] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessageBody(PromptBody, frozen=True, kw_only=True):
    """Fields of POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: dict[str, Any] | None = None


def message_ask(fields: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[Ask, list[TemplateMessage]]:
    """What a message asks for, and the messages before it; raises HttpError 400."""
    body, ignored = read_body(fields, MessageBody)
    sampling = {"top_k": body.top_k, "top_p": body.top_p}
    params = checked_params(
        {
            "temperature": TEMPERATURE if body.temperature is None else body.temperature,
            "stop": tuple(body.stop_sequences or ()),
            **{name: value for name, value in sampling.items() if value is not None},
        },
        names={"stop": "stop_sequences"},
    )
    ask = Ask(
        body.model,
        params,
        max_tokens=token_limit(body.max_tokens, "max_tokens"),
        stream=bool(body.stream),
        shape=_shape(body.output_config),
        tools=_tools(body),
        ignored=ignored,
        **service_fields(headers),
    )
    return ask, _messages(body)


def count_ask(fields: Mapping[str, Any], _: Mapping[str, str]) -> tuple[Ask, list[TemplateMessage]]:
    """What count_tokens asks for, and its messages; raises HttpError 400."""
    body, ignored = read_body(fields, PromptBody)
    ask = Ask(body.model, checked_params({}), tools=_tools(body), ignored=ignored)
    return ask, _messages(body)


def _shape(config: dict[str, Any] | None) -> Shape | None:
    form = (config or {}).get("format")
    return None if form is None else schema_shape(form, "output_config.format")


def _tools(body: PromptBody) -> ToolUse:
    several = not (body.tool_choice or {}).get("disable_parallel_tool_use", False)
    return tool_use(body.tools, body.tool_choice, several, "messages")


def _messages(body: PromptBody) -> list[TemplateMessage]:
    if not body.messages:
        raise wrong("is empty; send at least one message", "messages")
    found: list[TemplateMessage] = []
    if body.system is not None:
        parts = _blocks(body.system, "system")
        texts = [_text(block, param) for block, param in parts]
        system = "\n".join(text for text in texts if not text.startswith(BOOKKEEPING))
        if system:
            found.append({"role": "system", "content": system})
    for at, message in enumerate(body.messages):
        found += _message(message, f"messages[{at}]")
    return found


def _message(message: Any, param: str) -> list[TemplateMessage]:
    """A message; results of tools in it are messages of their own to a template, and come first."""
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ROLES:
        raise wrong(f"is {describe(role)}; use one of {', '.join(ROLES)}", f"{param}.role")
    texts: list[str] = []
    results: list[TemplateMessage] = []
    more: TemplateMessage = {}
    for block, where in _blocks(message.get("content"), f"{param}.content"):
        kind = block.get("type")
        if kind == "tool_result" and role == "user":
            identity = text_field(block, "tool_use_id", where)
            content = [_text(part, at) for part, at in _blocks(block.get("content", ""), f"{where}.content")]
            results.append({"role": "tool", "content": "\n".join(content), "tool_call_id": identity})
        elif kind == "tool_use" and role == "assistant":
            more.setdefault("tool_calls", []).append(_call(block, where))
        elif kind == "thinking" and role == "assistant":
            more["reasoning_content"] = more.get("reasoning_content", "") + text_field(
                block, "thinking", where
            )
        elif kind != "redacted_thinking":
            texts.append(_text(block, where))
    if not texts and results:
        return results
    return [*results, {"role": role, "content": "\n".join(texts), **more}]


def _blocks(content: Any, param: str) -> list[tuple[dict[str, Any], str]]:
    """Blocks of a content, each with its place; a string is one of text."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, param)]
    if not isinstance(content, list):
        raise wrong(f"is {describe(content)}; send a string or a list of blocks", param)
    for at, block in enumerate(content):
        if not isinstance(block, dict):
            raise wrong(f"is {describe(block)}; send a block", f"{param}[{at}]")
    return [(block, f"{param}[{at}]") for at, block in enumerate(content)]


def _text(block: dict[str, Any], param: str) -> str:
    kind = block.get("type")
    if kind == "text":
        return text_field(block, "text", param)
    if kind in ("image", "document", "audio"):
        raise wrong(f"is of type {kind}, which this model cannot read; send text only", param)
    raise wrong(f"is of type {describe(kind)}, which is not served here; send text", param)


def _call(block: dict[str, Any], param: str) -> dict[str, Any]:
    given = block.get("input")
    if not isinstance(given, dict):
        raise wrong(f"is {describe(given)}; send an object", f"{param}.input")
    arguments = msgspec.json.encode(given).decode()
    return call_of_tool(text_field(block, "id", param), text_field(block, "name", param), arguments)
