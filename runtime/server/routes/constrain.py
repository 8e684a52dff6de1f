"""Forms of replies and calls of tools: a grammar for the sampler, and a reader for the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.relayed import Relayed
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.wire.fields.ask import Ask, Shape
from kvfold.runtime.server.wire.fields.read_body import wrong
from kvfold.runtime.server.wire.reply_parts import ReplyReader
from kvfold.runtime.structured.call_formats import CallFormat
from kvfold.runtime.structured.grammar_spec import (
    AnswerSpec,
    Choice,
    GrammarSpec,
    JsonSchema,
    Lark,
    Regex,
    ToolCalls,
)
from kvfold.runtime.structured.reasoning import Reasoning, find_reasoning
from kvfold.runtime.structured.reply_parser import ReplyParser, kept_tokens, new_call_id, same_call_ids


@dataclass(frozen=True)
class Constrained:
    """What holds a request's replies to the form it asks for, and tells their parts apart.

    Attributes:
        grammar: compiled; None for any text.
        reasoning: marks of reasoning that the text may have.
        calls: how calls are written; None where they are text like any other.
        kept: tokens whose text the reader must see, though they are control tokens.
        ignored: parts of a schema that have no effect.
    """

    grammar: Any = None
    reasoning: Reasoning | None = None
    calls: CallFormat | None = None
    kept: frozenset[int] = frozenset()
    ignored: tuple[str, ...] = ()

    def reader(self, relayed: Relayed | None, at: int) -> ReplyReader | None:
        """The reader of reply number `at` of a request; None where all of it is text."""
        if self.reasoning is None and self.calls is None:
            return None
        new_id = new_call_id if relayed is None else same_call_ids(f"{relayed.id} {at}")
        return ReplyParser(self.reasoning, self.calls, new_id)


def constrain_chat(state: ServerState, ask: Ask, form: CallFormat, prompt: str) -> Constrained:
    """The form of replies to a rendered chat; raises HttpError 400."""
    tokenizer = state.llm.tokenizer
    reasoning = find_reasoning(tokenizer.chat_template, prompt)
    calls = None if ask.tools.mode == "none" else form
    if calls is None and ask.shape is None and reasoning is None and not ask.tools.tools:
        return Constrained()
    spec, param = _spec(ask, form)
    told = param
    if ask.shape is not None and isinstance(spec, ToolCalls) and spec.answer is not None:
        _compile(
            state, spec.answer, ask.shape.param, None
        )  # by itself first: what is wrong names its own field
        told = f"{param} or {ask.shape.param}"
    grammar = None if spec is None else _compile(state, spec, param, reasoning)
    kept = kept_tokens(tokenizer.added_tokens, reasoning, calls)
    return Constrained(grammar, reasoning, calls, kept, _ignored(grammar, told))


def constrain_text(state: ServerState, ask: Ask) -> Constrained:
    """The form of replies to raw prompts, in which nothing is told apart; raises HttpError 400."""
    if ask.shape is None:
        return Constrained()
    grammar = _compile(state, _shape_spec(ask.shape), ask.shape.param, None)
    return Constrained(grammar, ignored=_ignored(grammar, ask.shape.param))


def _spec(ask: Ask, form: CallFormat) -> tuple[GrammarSpec | None, str]:
    """What replies are held to, and the field that asks for it."""
    use = ask.tools
    answer = None if ask.shape is None or use.mode == "required" else _shape_spec(ask.shape)
    if use.tools and use.mode != "none":
        return ToolCalls(use.callable_tools, use.mode, use.parallel, form, answer), "tools"
    if ask.shape is not None:
        return answer, ask.shape.param
    if use.tools:
        return ToolCalls(use.callable_tools, use.mode, use.parallel, form), "tools"
    return None, ""


def _shape_spec(shape: Shape) -> AnswerSpec:
    match shape.kind:
        case "json":
            return JsonSchema(shape.value, shape.strict)
        case "regex":
            return Regex(shape.value)
        case "choice":
            return Choice(tuple(shape.value))
        case "grammar":
            return Lark(shape.value)


def _compile(state: ServerState, spec: GrammarSpec, param: str, reasoning: Reasoning | None) -> Any:
    if state.compiler is None:
        problem = "cannot be enforced: this server has no grammars; ask for plain text"
        raise wrong(problem, param, "unsupported_value")
    try:
        return state.compiler.compile(spec, reasoning)
    except RequestError as error:
        raise HttpError(400, str(error), param=param) from None


def _ignored(grammar: Any, param: str) -> tuple[str, ...]:
    return () if grammar is None else tuple(f"{param}: {warning}" for warning in grammar.warnings)
