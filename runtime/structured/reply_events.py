"""What a reply is made of, as it streams: text, reasoning, and calls of tools."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the reasoning before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins; its arguments follow.

    Attributes:
        index: of this call in the reply, from 0.
        id: by which the answer to the call names it.
        name: of the tool.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of a call's arguments; the texts of one index together are a JSON object."""

    index: int
    text: str


ReplyEvent = ContentDelta | ReasoningDelta | ToolCallStart | ToolCallArguments


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call; `arguments` is JSON, cut where the reply was."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A whole reply: its answer, the reasoning before it, and the calls after it."""

    content: str
    reasoning: str
    calls: tuple[ToolCall, ...]


def join_events(events: Iterable[ReplyEvent]) -> ParsedReply:
    """The reply that all events of a stream make up."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCallStart] = []
    arguments: list[list[str]] = []
    for event in events:
        match event:
            case ContentDelta(text):
                content.append(text)
            case ReasoningDelta(text):
                reasoning.append(text)
            case ToolCallStart():
                calls.append(event)
                arguments.append([])
            case ToolCallArguments(index, text):
                arguments[index].append(text)
    joined = zip(calls, arguments, strict=True)
    return ParsedReply(
        "".join(content),
        "".join(reasoning),
        tuple(ToolCall(call.id, call.name, "".join(texts)) for call, texts in joined),
    )
