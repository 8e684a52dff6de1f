"""Anthropic's messages on their way out: a whole body, the events of a stream, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.metrics import Usage
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.server.http import HttpError, sse
from kvfold.runtime.server.wire.chat_reply import ENCODER
from kvfold.runtime.server.wire.openai_usage import Head
from kvfold.runtime.server.wire.reply_parts import WholeReply, check_not_cancelled
from kvfold.runtime.structured.reply_events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallArguments,
    ToolCallStart,
)

PING = sse(b'{"type":"ping"}', "ping")
ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def message_error(error: HttpError) -> dict[str, Any]:
    """Anthropic's body of an error."""
    kind = ERRORS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def message_error_event(error: HttpError) -> bytes:
    """The same inside a stream."""
    return sse(ENCODER.encode(message_error(error)), "error")


def message_body(head: Head, reply: WholeReply, max_length: int) -> bytes:
    """The body of a message; `max_length` is the model's, which may have ended it."""
    content: list[dict[str, Any]] = []
    parts = reply.parts
    if parts.reasoning:
        content.append({"type": "thinking", "thinking": parts.reasoning, "signature": ""})
    if parts.content or not parts.calls:
        content.append({"type": "text", "text": parts.content})
    for call in parts.calls:
        given = _read_arguments(call.arguments)
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
    completion = reply.completion
    ended = _ended(completion, bool(parts.calls), max_length)
    return ENCODER.encode(_message(head, content, _usage(completion.usage)) | ended)


class MessageEvents:
    """Events of one stream. What stays the same from token to token is encoded once."""

    def __init__(self, head: Head, prompt_tokens: int, max_length: int) -> None:
        """For a reply to so many tokens; `max_length` is the model's, which may end it."""
        self._head = head
        self._prompt_tokens = prompt_tokens
        self._max_length = max_length
        self._blocks = 0
        self._open: str | None = None
        self._called = False
        self._text_opening = b""

    def begin(self) -> bytes:
        """The message without content; what of the prompt came from the cache is told at the end."""
        usage = {"input_tokens": self._prompt_tokens, "output_tokens": 0}
        message = _message(self._head, [], usage | {"cache_read_input_tokens": 0})
        return _event("message_start", message=message) + PING

    def text(self, at: int, text: str) -> bytes:
        """More text of the reply."""
        opening = b""
        if self._open != "text":
            opening = self._begin_block({"type": "text", "text": ""})
            self._text_opening = (
                b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
                b'"delta":{"type":"text_delta","text":' % (self._blocks - 1)
            )
        return opening + self._text_opening + ENCODER.encode(text) + b"}}\n\n"

    def parts(self, at: int, parts: Sequence[ReplyEvent], logprobs: Sequence[TokenLogprob] | None) -> bytes:
        """More of the reply; this API has no log probabilities."""
        return b"".join(map(self._part, parts))

    def end(self, at: int, completion: Completion) -> bytes:
        """The reply has ended."""
        ended = _ended(completion, self._called, self._max_length)
        opening = b"" if self._blocks else self._begin_block({"type": "text", "text": ""})
        delta = _event("message_delta", delta=ended, usage=_usage(completion.usage))
        return opening + self._end_block() + delta

    def close(self, usages: Sequence[Usage]) -> bytes:
        """Nothing more comes."""
        return _event("message_stop")

    def _part(self, part: ReplyEvent) -> bytes:
        match part:
            case ContentDelta(text):
                return self.text(0, text) if text else b""
            case ReasoningDelta(text):
                block = {"type": "thinking", "thinking": "", "signature": ""}
                opening = b"" if self._open == "thinking" else self._begin_block(block)
                return opening + self._delta({"type": "thinking_delta", "thinking": text})
            case ToolCallStart(_, identity, name):
                self._called = True
                return self._begin_block({"type": "tool_use", "id": identity, "name": name, "input": {}})
            case ToolCallArguments(_, text):
                return self._delta({"type": "input_json_delta", "partial_json": text})

    def _begin_block(self, block: dict[str, Any]) -> bytes:
        ending = self._end_block()
        self._open = block["type"]
        self._blocks += 1
        return ending + _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _end_block(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._blocks - 1)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)


def _read_arguments(arguments: str) -> Any:
    """What a call gives its tool; nothing where the reply was cut within, of which stop_reason tells."""
    try:
        return msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return {}


def _event(kind: str, **fields: Any) -> bytes:
    return sse(ENCODER.encode({"type": kind, **fields}), kind)


def _message(head: Head, content: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
    return {
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic's input tokens are those that did not come from the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.reused_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.reused_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _ended(completion: Completion, called: bool, max_length: int) -> dict[str, str | None]:
    """Anthropic's words for why a reply ended; raises HttpError where somebody else cancelled it."""
    check_not_cancelled(completion)
    reason = "max_tokens"
    if completion.finish_reason == "stop":
        reason = "stop_sequence" if completion.stop_text is not None else "end_turn"
        reason = "tool_use" if called else reason
    elif completion.usage.prompt_tokens + completion.usage.completion_tokens >= max_length:
        reason = "model_context_window_exceeded"
    return {
        "stop_reason": reason,
        "stop_sequence": completion.stop_text if reason == "stop_sequence" else None,
    }
