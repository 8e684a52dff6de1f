"""A reply in the parts that the APIs tell apart: text, reasoning, calls of tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import uuid4

from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.server.http import HttpError

CLIENT_CLOSED = 499  # nginx's: no client tries again by itself
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """More of the reply's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """More of what the model thought before it replied."""

    text: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """A call begins; its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsPart:
    """More of the arguments of the call that began last, as JSON."""

    text: str


Part = TextPart | ReasoningPart | CallPart | ArgumentsPart


class ReplyReader(Protocol):
    """Tells the parts of one reply apart; one object per reply."""

    def feed(self, text: str) -> Sequence[Part]:
        """Parts that more text made certain."""
        ...

    def finish(self) -> Sequence[Part]:
        """What was held back: no more text comes."""
        ...


class PlainReader:
    """A reply that is all text."""

    def feed(self, text: str) -> Sequence[Part]:
        """The text."""
        return (TextPart(text),) if text else ()

    def finish(self) -> Sequence[Part]:
        """Nothing: it holds nothing back."""
        return ()


MakeReader = Callable[[], ReplyReader | None]


@dataclass(frozen=True)
class Call:
    """A call of a tool; its arguments are JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class WholeReply:
    """A finished reply, read."""

    completion: Completion
    text: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()

    @property
    def finish_reason(self) -> FinishReason:
        """OpenAI's word for why it ended; raises as `openai_finish`."""
        return openai_finish(self.completion, bool(self.calls))


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


def read_whole(completion: Completion, reader: ReplyReader | None, call_prefix: str = "call_") -> WholeReply:
    """A finished reply in its parts; without a reader all of it is text."""
    if reader is None:
        return WholeReply(completion, completion.text)
    text: list[str] = []
    reasoning: list[str] = []
    calls: list[tuple[str, list[str]]] = []
    for part in (*reader.feed(completion.text), *reader.finish()):
        match part:
            case TextPart():
                text.append(part.text)
            case ReasoningPart():
                reasoning.append(part.text)
            case CallPart():
                calls.append((part.name, []))
            case ArgumentsPart():
                calls[-1][1].append(part.text)
    made = tuple(Call(new_id(call_prefix), name, "".join(pieces)) for name, pieces in calls)
    return WholeReply(completion, "".join(text), "".join(reasoning), made)


def new_id(prefix: str) -> str:
    """An id that nobody guesses."""
    return prefix + uuid4().hex
