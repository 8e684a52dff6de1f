"""A reply as the APIs tell it: its parts, whole or as they come, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import uuid4

from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.server.http import HttpError
from kvfold.runtime.structured.reply_events import ContentDelta, ParsedReply, ReplyEvent, join_events

FinishReason = Literal["stop", "length", "tool_calls"]
CLIENT_CLOSED = 499  # nginx's: no client tries again by itself


class ReplyReader(Protocol):
    """Tells the parts of one reply apart, as ReplyParser does; one object per reply."""

    def push(self, text: str) -> Sequence[ReplyEvent]:
        """Parts that more text made certain."""
        ...

    def finish(self) -> Sequence[ReplyEvent]:
        """What was held back: no more text comes."""
        ...


class PlainReader:
    """A reply that is all text."""

    def push(self, text: str) -> Sequence[ReplyEvent]:
        """The text."""
        return (ContentDelta(text),) if text else ()

    def finish(self) -> Sequence[ReplyEvent]:
        """Nothing: it holds nothing back."""
        return ()


@dataclass(frozen=True)
class WholeReply:
    """A finished reply, and its parts."""

    completion: Completion
    parts: ParsedReply

    @property
    def finish_reason(self) -> FinishReason:
        """OpenAI's word for why it ended; raises as `openai_finish`."""
        return openai_finish(self.completion, bool(self.parts.calls))


def read_whole(completion: Completion, reader: ReplyReader | None) -> WholeReply:
    """A finished reply in its parts; without a reader all of it is text."""
    if reader is None:
        return WholeReply(completion, ParsedReply(completion.text, "", ()))
    events = [*reader.push(completion.text), *reader.finish()]
    return WholeReply(completion, join_events(events))


def openai_finish(completion: Completion, called: bool) -> FinishReason:
    """OpenAI's word for why a reply ended; a deadline cuts it as a limit of tokens does.

    Raises:
        HttpError: somebody else cancelled it: there is no word for that.
    """
    check_not_cancelled(completion)
    if completion.finish_reason == "stop":
        return "tool_calls" if called else "stop"
    return "length"


def check_not_cancelled(completion: Completion) -> None:
    """Refuse to call a reply whole that was cancelled, unless its own deadline did that; raises HttpError."""
    match completion.cancel_reason:
        case "client":
            raise HttpError(
                CLIENT_CLOSED, "the request was cancelled before its reply ended", code="cancelled"
            )
        case "drain":
            raise HttpError(503, "the server stops; ask again elsewhere", code="draining")
        case "error":
            raise HttpError(500, "the reply ended by an error of the server", code="reply_failed")


def new_id(prefix: str) -> str:
    """An id that nobody guesses."""
    return prefix + uuid4().hex
