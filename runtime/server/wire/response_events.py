"""OpenAI's responses on their way out: the response as it grows, and the events of its stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.metrics import Usage
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.server.http import HttpError, sse
from kvfold.runtime.server.wire.chat_reply import ENCODER
from kvfold.runtime.server.wire.openai_usage import Head
from kvfold.runtime.server.wire.token_texts import TokenTexts
from kvfold.runtime.structured.reply_events import (
    ContentDelta,
    ReasoningDelta,
    ReplyEvent,
    ToolCallArguments,
    ToolCallStart,
)

MESSAGE, REASONING, CALL = "message", "reasoning", "function_call"


class ResponseEvents:
    """One response and the events of its stream. What stays the same from token to token is encoded once.

    Attributes:
        response: as it is now.
    """

    def __init__(
        self, head: Head, told: dict[str, Any], texts: TokenTexts, count: Callable[[str], int]
    ) -> None:
        """A response that begins.

        Args:
            head: of the response.
            told: fields of the request that it repeats.
            texts: of the model's tokens.
            count: tokens of a text, for what the model thought.
        """
        self.response: dict[str, Any] = {
            "id": head.id,
            "object": "response",
            "created_at": head.created,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": head.model,
            "output": [],
            "usage": None,
            **told,
        }
        self._texts = texts
        self._count = count
        self._sequence = 0
        self._pieces: list[str] = []
        self._logprobs: list[Any] = []
        self._open: str | None = None
        self._text_opening = b""

    def begin(self) -> bytes:
        """It was taken, and is at work."""
        return self._whole("response.created") + self._whole("response.in_progress")

    def text(self, at: int, text: str) -> bytes:
        """More text of the reply."""
        opening = b"" if self._open == MESSAGE else self._begin_item(MESSAGE)
        self._pieces.append(text)
        self._sequence += 1
        closing = b',"logprobs":[],"sequence_number":%d}\n\n' % (self._sequence - 1)
        return opening + self._text_opening + ENCODER.encode(text) + closing

    def parts(self, at: int, parts: Sequence[ReplyEvent], logprobs: Sequence[TokenLogprob] | None) -> bytes:
        """More of the reply, and the log probabilities of the tokens that brought it."""
        data = b""
        for part in parts:
            if isinstance(part, ContentDelta):
                data += self._say(part.text, logprobs)
                logprobs = None
            else:
                data += self._part(part)
        return data

    def end(self, at: int, completion: Completion) -> bytes:
        """The reply has ended: so have the last item and the response."""
        if not self.response["output"]:
            data = self._begin_item(MESSAGE) + self._end_item(completion.finish_reason)
        else:
            data = self._end_item(completion.finish_reason)
        usage = completion.usage
        self.response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.reused_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens()},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return data + self._settle(completion)

    def close(self, usages: Sequence[Usage]) -> bytes:
        """Nothing more comes; this API has no [DONE]."""
        return b""

    def fail(self, error: HttpError) -> bytes:
        """It ended by an error."""
        self.response["status"] = "failed"
        self.response["error"] = {"code": error.code or "server_error", "message": error.message}
        return self._whole("response.failed")

    def _settle(self, completion: Completion) -> bytes:
        status = "completed" if completion.finish_reason == "stop" else "incomplete"
        if completion.cancel_reason == "client":
            status = "cancelled"
        elif completion.cancel_reason in ("drain", "error"):
            return self.fail(HttpError(503, f"the reply was cancelled: {completion.cancel_reason}"))
        elif completion.finish_reason == "length":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        self.response["status"] = status
        return self._whole("response.completed" if status == "completed" else "response.incomplete")

    def _say(self, text: str, logprobs: Sequence[TokenLogprob] | None) -> bytes:
        if logprobs is None:
            return self.text(0, text) if text else b""
        opening = b"" if self._open == MESSAGE else self._begin_item(MESSAGE)
        found = self._texts.chat(logprobs)
        self._pieces.append(text)
        self._logprobs += found
        return opening + self._event(
            "response.output_text.delta", content_index=0, delta=text, logprobs=found
        )

    def _part(self, part: ReplyEvent) -> bytes:
        match part:
            case ContentDelta(text):
                return self._say(text, None)
            case ReasoningDelta(text):
                opening = b"" if self._open == REASONING else self._begin_item(REASONING)
                self._pieces.append(text)
                return opening + self._event("response.reasoning_text.delta", content_index=0, delta=text)
            case ToolCallStart(_, identity, name):
                return self._begin_item(CALL, identity, name)
            case ToolCallArguments(_, text):
                self._pieces.append(text)
                return self._event("response.function_call_arguments.delta", delta=text)

    def _begin_item(self, kind: str, call_id: str = "", name: str = "") -> bytes:
        ending = self._end_item("stop")
        self._open = kind
        item = _item(kind, self._item_id(), call_id, name)
        self.response["output"].append(item)
        added = self._event("response.output_item.added", item=item)
        if kind == CALL:
            return ending + added
        part = _text_part(kind, "", [])
        added += self._event("response.content_part.added", content_index=0, part=part)
        self._text_opening = (
            b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"%s",'
            b'"output_index":%d,"content_index":0,"delta":'
            % (item["id"].encode(), len(self.response["output"]) - 1)
        )
        return ending + added

    def _item_id(self) -> str:
        """Of the next item: the same wherever the response is written."""
        return f"{self.response['id'].removeprefix('resp_')}{len(self.response['output']):02x}"

    def _end_item(self, finish: str) -> bytes:
        """End the open item, if there is one, and put its text where it belongs."""
        kind, self._open = self._open, None
        if kind is None:
            return b""
        text, logprobs = "".join(self._pieces), self._logprobs
        self._pieces, self._logprobs = [], []
        item = self.response["output"][-1]
        item["status"] = "completed" if finish == "stop" else "incomplete"
        if kind == CALL:
            item["arguments"] = text
            done = self._event("response.function_call_arguments.done", arguments=text)
            return done + self._event("response.output_item.done", item=item)
        part = _text_part(kind, text, logprobs)
        item["content"] = [part]
        name = "output_text" if kind == MESSAGE else "reasoning_text"
        more = {"logprobs": logprobs} if kind == MESSAGE else {}
        done = self._event(f"response.{name}.done", content_index=0, text=text, **more)
        done += self._event("response.content_part.done", content_index=0, part=part)
        return done + self._event("response.output_item.done", item=item)

    def _event(self, kind: str, **fields: Any) -> bytes:
        """An event of the last item."""
        output = self.response["output"]
        where = {"output_index": len(output) - 1}
        if "item" not in fields:
            where = {"item_id": output[-1]["id"], **where}
        return self._send(kind, {**where, **fields})

    def _whole(self, kind: str) -> bytes:
        return self._send(kind, {"response": self.response})

    def _send(self, kind: str, fields: dict[str, Any]) -> bytes:
        self._sequence += 1
        return sse(ENCODER.encode({"type": kind, **fields, "sequence_number": self._sequence - 1}), kind)

    def _reasoning_tokens(self) -> int:
        thoughts = [item for item in self.response["output"] if item["type"] == REASONING]
        return sum(self._count(item["content"][0]["text"]) for item in thoughts)


def _item(kind: str, identity: str, call_id: str, name: str) -> dict[str, Any]:
    if kind == CALL:
        call = {"call_id": call_id, "name": name, "arguments": ""}
        return {"type": kind, "id": f"fc_{identity}", "status": "in_progress", **call}
    if kind == REASONING:
        return {"type": kind, "id": f"rs_{identity}", "status": "in_progress", "summary": [], "content": []}
    message = {"role": "assistant", "content": []}
    return {"type": kind, "id": f"msg_{identity}", "status": "in_progress", **message}


def _text_part(kind: str, text: str, logprobs: list[Any]) -> dict[str, Any]:
    if kind == REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
