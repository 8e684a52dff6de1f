"""Chat completions on their way out: a whole body, or the events of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.metrics import Usage
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.server.http import sse
from kvfold.runtime.server.wire.openai_usage import Head, openai_usage
from kvfold.runtime.server.wire.reply_parts import WholeReply, openai_finish
from kvfold.runtime.server.wire.token_texts import TokenTexts
from kvfold.runtime.structured.reply_events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallArguments,
    ToolCallStart,
)

DONE = sse(b"[DONE]")
ENCODER = msgspec.json.Encoder()


def chat_body(head: Head, replies: Sequence[WholeReply], texts: TokenTexts) -> bytes:
    """The body of a chat completion."""
    choices = [_choice(at, reply, texts) for at, reply in enumerate(replies)]
    usage = openai_usage([reply.completion.usage for reply in replies], len(replies))
    return ENCODER.encode(_frame(head, "chat.completion") | {"choices": choices, "usage": usage})


class ChatEvents:
    """Events of one stream. What stays the same from token to token is encoded once."""

    def __init__(self, head: Head, replies: int, include_usage: bool, texts: TokenTexts) -> None:
        """For a stream of so many replies."""
        self._head = head
        self._texts = texts
        self._include_usage = include_usage
        self._called = [False] * replies
        chunk = ENCODER.encode(_frame(head, "chat.completion.chunk"))[:-1]
        usage = b',"usage":null}' if include_usage else b"}"
        self._opening = [
            b"data: " + chunk + b',"choices":[{"index":%d,"delta":' % at for at in range(replies)
        ]
        self._closing = b"}]" + usage + b"\n\n"
        self._text_opening = [opening + b'{"content":' for opening in self._opening]
        self._text_closing = b'},"logprobs":null,"finish_reason":null' + self._closing

    def begin(self) -> bytes:
        """The chunks that say who speaks."""
        role = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(at, role) for at in range(len(self._opening)))

    def text(self, at: int, text: str) -> bytes:
        """More text of a reply."""
        return self._text_opening[at] + ENCODER.encode(text) + self._text_closing

    def parts(self, at: int, parts: Sequence[ReplyEvent], logprobs: Sequence[TokenLogprob] | None) -> bytes:
        """More of a reply, and the log probabilities of the tokens that brought it."""
        if logprobs is not None and not parts:
            parts = (ContentDelta(""),)
        chunks = []
        for part in parts:
            chunks.append(self._chunk(at, self._delta(at, part), logprobs))
            logprobs = None
        return b"".join(chunks)

    def end(self, at: int, completion: Completion) -> bytes:
        """A reply has ended."""
        return self._chunk(at, {}, finish=openai_finish(completion, self._called[at]))

    def close(self, usages: Sequence[Usage]) -> bytes:
        """All replies have ended."""
        if not self._include_usage:
            return DONE
        usage = openai_usage(usages, len(self._opening))
        chunk = _frame(self._head, "chat.completion.chunk") | {"choices": [], "usage": usage}
        return sse(ENCODER.encode(chunk)) + DONE

    def _chunk(
        self,
        at: int,
        delta: dict[str, Any],
        logprobs: Sequence[TokenLogprob] | None = None,
        finish: str | None = None,
    ) -> bytes:
        content = None if logprobs is None else {"content": self._texts.chat(logprobs), "refusal": None}
        rest = ENCODER.encode({"logprobs": content, "finish_reason": finish})
        return self._opening[at] + ENCODER.encode(delta) + b"," + rest[1:-1] + self._closing

    def _delta(self, at: int, part: ReplyEvent) -> dict[str, Any]:
        match part:
            case ContentDelta(text):
                return {"content": text}
            case ReasoningDelta(text):
                return {"reasoning_content": text}
            case ToolCallStart(index, identity, name):
                self._called[at] = True
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": identity, "type": "function", "function": function}
                return {"tool_calls": [call]}
            case ToolCallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _choice(at: int, reply: WholeReply, texts: TokenTexts) -> dict[str, Any]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in reply.parts.calls
    ]
    content = None if calls and not reply.parts.content else reply.parts.content
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reply.parts.reasoning:
        message["reasoning_content"] = reply.parts.reasoning
    if calls:
        message["tool_calls"] = calls
    found = reply.completion.logprobs
    logprobs = None if found is None else {"content": texts.chat(found), "refusal": None}
    return {"index": at, "message": message, "logprobs": logprobs, "finish_reason": reply.finish_reason}


def _frame(head: Head, kind: str) -> dict[str, Any]:
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model}
