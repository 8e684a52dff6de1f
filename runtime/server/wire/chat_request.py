"""The body of a chat completion as an Ask and messages for the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfold.runtime.server.wire.fields.ask import Ask
from kvfold.runtime.server.wire.fields.read_body import describe, read_body, wrong
from kvfold.runtime.server.wire.fields.sampling_fields import (
    SamplingFields,
    sampling_params,
    service_fields,
    stream_fields,
    token_limit,
)
from kvfold.runtime.server.wire.fields.shape_fields import read_shape
from kvfold.runtime.server.wire.fields.template_messages import TemplateMessage, template_messages
from kvfold.runtime.server.wire.fields.tool_fields import tool_use

MAX_TOP_LOGPROBS = 20


class ChatBody(SamplingFields, frozen=True, kw_only=True):
    """Fields of POST /v1/chat/completions."""

    messages: list[Any]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    functions: list[Any] | None = None
    function_call: Any = None


def chat_ask(fields: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[Ask, list[TemplateMessage]]:
    """What a chat completion asks for, and its messages; raises HttpError 400."""
    body, ignored = read_body(fields, ChatBody)
    if body.modalities is not None and body.modalities != ["text"]:
        raise wrong(f'is {describe(body.modalities)}; this model writes text: send ["text"]', "modalities")
    if body.functions or body.function_call is not None:
        param = "functions" if body.functions else "function_call"
        raise wrong("is no longer served; send tools and tool_choice", param)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    ask = Ask(
        body.model,
        sampling_params(body, logprobs=_logprobs(body)),
        max_tokens=token_limit(limit, param),
        shape=read_shape(body),
        tools=tool_use(body.tools, body.tool_choice, body.parallel_tool_calls, "chat"),
        ignored=ignored,
        **stream_fields(body),
        **service_fields(headers, body.priority, body.timeout, body.session_id),
    )
    return ask, template_messages(body.messages)


def _logprobs(body: ChatBody) -> int | None:
    top = body.top_logprobs
    if not body.logprobs:
        if top:
            raise wrong("needs logprobs: true", "top_logprobs")
        return None
    if not 0 <= (top or 0) <= MAX_TOP_LOGPROBS:
        raise wrong(f"is {top}; use 0 to {MAX_TOP_LOGPROBS}", "top_logprobs")
    return top or 0
