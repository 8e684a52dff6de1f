"""The body of OpenAI's responses as an Ask and messages for the template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kvfold.runtime.server.wire.chat_request import MAX_TOP_LOGPROBS
from kvfold.runtime.server.wire.fields.ask import Ask, ToolUse
from kvfold.runtime.server.wire.fields.read_body import describe, read_body, wrong
from kvfold.runtime.server.wire.fields.sampling_fields import (
    TEMPERATURE,
    checked_params,
    service_fields,
    token_limit,
)
from kvfold.runtime.server.wire.fields.shape_fields import schema_shape
from kvfold.runtime.server.wire.fields.template_messages import TemplateMessage
from kvfold.runtime.server.wire.fields.tool_fields import tool_use
from kvfold.runtime.server.wire.response_items import input_messages

FORM_FIELDS = ("type", "name", "schema", "strict", "description")
WITH_LOGPROBS = "message.output_text.logprobs"


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of POST /v1/responses."""

    input: Any
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    stream: bool | None = None
    store: bool | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    truncation: str | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    # ours and vLLM's
    priority: int | None = None
    timeout: float | None = None
    session_id: str | None = None


@dataclass(frozen=True)
class ResponseAsk:
    """What a response asks for.

    Attributes:
        ask: what all APIs share.
        instructions: a system message that later responses do not inherit; None for none.
        messages: those of the input.
        previous: the response that it goes on from; None for none.
        store: keep it, to be asked for or gone on from.
        told: fields that the response repeats.
    """

    ask: Ask
    instructions: str | None
    messages: list[TemplateMessage]
    previous: str | None
    store: bool
    told: dict[str, Any]


def response_ask(fields: Mapping[str, Any], headers: Mapping[str, str]) -> ResponseAsk:
    """What a response asks for; raises HttpError 400."""
    body, ignored = read_body(fields, ResponseBody)
    _refuse_unserved(body)
    values = {
        "temperature": TEMPERATURE if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "logprobs": _logprobs(body),
    }
    form = (body.text or {}).get("format")
    ask = Ask(
        body.model,
        checked_params(values),
        max_tokens=token_limit(body.max_output_tokens, "max_output_tokens"),
        stream=bool(body.stream),
        shape=None if form is None else schema_shape(form, "text.format"),
        tools=tool_use(body.tools, body.tool_choice, body.parallel_tool_calls, "responses"),
        ignored=ignored,
        **service_fields(headers, body.priority, body.timeout, body.session_id),
    )
    store = body.store is not False
    messages = input_messages(body.input)
    return ResponseAsk(
        ask, body.instructions, messages, body.previous_response_id, store, _told(body, ask, store)
    )


def _refuse_unserved(body: ResponseBody) -> None:
    """Refuse fields that would change what a response is, were they ignored."""
    if body.background:
        raise wrong("is true; this server keeps no response running: send stream: true", "background")
    if body.truncation not in (None, "disabled"):
        raise wrong(f"is {describe(body.truncation)}; nothing is cut here: use disabled", "truncation")
    for name in ("conversation", "prompt"):
        if getattr(body, name) is not None:
            raise wrong("is not served here; send input, and previous_response_id for a conversation", name)


def _logprobs(body: ResponseBody) -> int | None:
    top = body.top_logprobs
    if not 0 <= (top or 0) <= MAX_TOP_LOGPROBS:
        raise wrong(f"is {top}; use 0 to {MAX_TOP_LOGPROBS}", "top_logprobs")
    return (top or 0) if top or WITH_LOGPROBS in (body.include or ()) else None


def _told(body: ResponseBody, ask: Ask, store: bool) -> dict[str, Any]:
    """Fields that the response repeats, as far as we know them: it may be kept, so nothing else is."""
    form = (body.text or {}).get("format") or {"type": "text"}
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": check_metadata(body.metadata),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "store": store,
        "temperature": ask.params.temperature,
        "text": {"format": {name: form[name] for name in FORM_FIELDS if name in form}},
        "tool_choice": _told_choice(ask.tools),
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict,
            }
            for tool in ask.tools.tools
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": ask.params.top_p,
        "truncation": "disabled",
    }


def _told_choice(use: ToolUse) -> Any:
    """The choice among the tools, in this API's words."""
    if not use.tools:
        return "auto"
    if use.only is None:
        return use.mode
    names = [{"type": "function", "name": name} for name in use.only]
    if use.mode == "required" and len(names) == 1:
        return names[0]
    return {"type": "allowed_tools", "mode": use.mode, "tools": names}


def check_metadata(given: dict[str, Any] | None) -> dict[str, str]:
    """A client's own notes on a response; raises HttpError 400 beyond OpenAI's limits."""
    found = given or {}
    fits = len(found) <= 16 and all(
        isinstance(value, str) and len(name) <= 64 and len(value) <= 512 for name, value in found.items()
    )
    if not fits:
        raise wrong("must be at most 16 texts of up to 512 characters, under names of up to 64", "metadata")
    return found
