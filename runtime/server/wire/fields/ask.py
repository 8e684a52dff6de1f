"""Ask: what a request asks for, by whatever API it came."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.structured.tools import Tool

ToolMode = Literal["none", "auto", "required"]


@dataclass(frozen=True)
class ToolUse:
    """Which tools the model sees, and whether it must call one.

    Attributes:
        tools: those it sees.
        mode: `none`: it calls nothing; `auto`: it decides; `required`: it calls one of `callable_tools`.
        only: names it may call; None for all of `tools`.
        parallel: whether it may call several at once.
    """

    tools: tuple[Tool, ...] = ()
    mode: ToolMode = "none"
    only: tuple[str, ...] | None = None
    parallel: bool = True

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """Tools it may call."""
        return tuple(tool for tool in self.tools if self.only is None or tool.name in self.only)


@dataclass(frozen=True)
class Shape:
    """A form that a reply must have.

    Attributes:
        kind: of `value`: a JSON Schema (None: any object), a regular expression, texts, a Lark grammar.
        value: the form.
        param: the field that asked for it.
        strict: refuse what of a schema cannot be enforced; else it is ignored, and named.
    """

    kind: Literal["json", "regex", "choice", "grammar"]
    value: Any
    param: str
    strict: bool = True


@dataclass(frozen=True)
class Ask:
    """What a request asks for, apart from what it continues.

    Attributes:
        model: the model's name; None for the one that is served.
        params: how to sample. Its max_tokens is not read: see `max_tokens`.
        max_tokens: of the reply; None for what the context leaves.
        n: replies to each prompt.
        stream: whether the reply is sent piece by piece.
        include_usage: a stream ends with what it cost.
        priority: lower goes first.
        deadline: seconds from submission; None for none.
        shape: a form that the reply must have.
        tools: what the model may call.
        session: whose turn it is; None for none.
        ignored: names of fields that nobody here knows.
    """

    model: str | None
    params: SamplingParams
    max_tokens: int | None = None
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    priority: int = 0
    deadline: float | None = None
    shape: Shape | None = None
    tools: ToolUse = field(default_factory=ToolUse)
    session: str | None = None
    ignored: tuple[str, ...] = ()

    def params_for(self, prompt_tokens: int, max_length: int, at: int) -> SamplingParams:
        """Params of reply number `at`: a seed of its own, and no more tokens than the context leaves."""
        left = max_length - prompt_tokens
        limit = left if self.max_tokens is None else min(self.max_tokens, left)
        seed = None if self.params.seed is None else (self.params.seed + at) % 2**64
        return replace(self.params, max_tokens=limit, seed=seed)
