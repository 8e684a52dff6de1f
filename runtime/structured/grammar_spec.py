"""What a reply is held to: a JSON schema, a regex, a choice, a grammar, or text with tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvfold.runtime.structured.call_formats import HERMES, CallFormat
from kvfold.runtime.structured.tools import Tool


@dataclass(frozen=True)
class JsonSchema:
    """A JSON document, without white space around it.

    Attributes:
        schema: draft 2020-12; None for any object.
        strict: refuse what cannot be enforced. False: ignore it, and say so in `Grammar.warnings`.
    """

    schema: Mapping[str, Any] | None = None
    strict: bool = True


@dataclass(frozen=True)
class Regex:
    """The whole reply matches, in the syntax of Rust's `regex` crate, without look-around."""

    pattern: str


@dataclass(frozen=True)
class Choice:
    """One of these texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Lark:
    """A grammar in llguidance's variant of Lark; `start` is the reply.

    Control tokens are named in it as such: `<tool_call>`, or by their id `<[7]>`.
    """

    grammar: str


AnswerSpec = JsonSchema | Regex | Choice | Lark


@dataclass(frozen=True)
class ToolCalls:
    """Calls of tools, or text, or text and then calls.

    Attributes:
        tools: those that may be called, at least one. For one tool by name, give that one and `required`.
        choice: `auto` leaves it to the model; `required` is a call; `none` is text in which no token of a
            call's format occurs.
        parallel: more calls than one may follow each other.
        format: how the model writes a call.
        answer: with `auto`, what a reply without a call is held to; None: text, also before calls.
    """

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required", "none"] = "auto"
    parallel: bool = True
    format: CallFormat = HERMES
    answer: AnswerSpec | None = None


GrammarSpec = AnswerSpec | ToolCalls
