"""Grammars of requests, compiled by llguidance over the model's tokens before a request is admitted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kvfold.plugins.contract.errors import MissingExtraError, RequestError
from kvfold.runtime.structured.deep_stack import call_on_stack
from kvfold.runtime.structured.grammar_errors import explain_failure, find_unknown_keyword
from kvfold.runtime.structured.grammar_limits import FUEL, ITEMS, ROW, STACK_BYTES, STEP_FUEL
from kvfold.runtime.structured.grammar_spec import GrammarSpec, JsonSchema, ToolCalls
from kvfold.runtime.structured.reasoning import Reasoning
from kvfold.runtime.structured.token_constraint import TokenConstraint
from kvfold.runtime.structured.write_grammar import GrammarWriter, find_tool_at

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Texts that llguidance allows all at once, where a string may go on for so many characters; tokens of longer
# texts it tries one by one. Its own lengths are 10 and 30: a string of at most 24 then takes 100 us a mask.
_CHARACTER, _LENGTHS = r'[^"\\\x00-\x1F\x7F]', (5, 10, 15, 20, 30)
SLICES = (
    r"[\x20\x0A\x0D\x09]+",
    *(f"{_CHARACTER}{{1,{length}}}" for length in _LENGTHS),
    f"{_CHARACTER}+",
)


class Grammar:
    """A compiled grammar, for any number of replies.

    Attributes:
        warnings: what of a schema that is not strict is ignored.
    """

    def __init__(self, matcher: LLMatcher, first: np.ndarray, allowed: np.ndarray | None) -> None:
        """Over a matcher at its beginning, with the mask there."""
        self.warnings: tuple[str, ...] = tuple(matcher.get_grammar_warnings())
        self._matcher = matcher
        self._first = first
        self._allowed = allowed

    def constraint(self) -> TokenConstraint:
        """One for a fresh reply."""
        return TokenConstraint(self._matcher.deep_copy(), self._first, self._allowed)


class GrammarCompiler:
    """Compiles grammars for one model. Any thread may use it."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Read a tokenizer, which takes a fraction of a second.

        Args:
            tokenizer_json: the text of the bundle's tokenizer.json.
            vocab_size: logits of a token. The tokenizer may have fewer tokens: the others are never allowed.
            eos_token_ids: tokens that end a reply.

        Raises:
            MissingExtraError: llguidance is not installed.
            RequestError: llguidance cannot read this tokenizer, so no reply can be held to a grammar.
        """
        try:
            import llguidance
        except ImportError as error:
            raise MissingExtraError(
                "structured output needs llguidance; install it with: pip install 'kvfold[serve]'"
            ) from error
        data: dict[str, Any] = json.loads(tokenizer_json)
        added = {token["content"]: int(token["id"]) for token in data.get("added_tokens", ())}
        eos = [int(token) for token in eos_token_ids]
        # llguidance wants one; where the model has none, it is one that is then never allowed.
        marks = eos or [token["id"] for token in data.get("added_tokens", ()) if token["special"]][:1]
        try:
            self._tokenizer = llguidance.LLTokenizer(
                tokenizer_json, n_vocab=vocab_size, eos_token=marks or None, slices=[*SLICES]
            )
        except BaseException as error:  # it panics on what it does not know
            _let_through(error)
            raise RequestError(
                f"this model's tokenizer cannot be held to a grammar: {error}; ask for plain text"
            ) from error
        special = {name: token for name, token in added.items() if self._tokenizer.is_special_token(token)}
        self._writer = GrammarWriter(special)
        self._allowed = _tokens_of(data, vocab_size, () if eos else self._tokenizer.eos_tokens)
        self._words = -(-vocab_size // 32)
        self._limits = llguidance.LLParserLimits(
            initial_lexer_fuel=FUEL,
            step_lexer_fuel=STEP_FUEL,
            step_max_items=ITEMS,
            max_items_in_row=ROW,
            verbose_errors=False,
        )

    def compile(self, spec: GrammarSpec, reasoning: Reasoning | None = None) -> Grammar:
        """Compile a grammar and take its first mask.

        Args:
            spec: what the reply, or after reasoning the answer, is held to.
            reasoning: the marks of reasoning that may stand before.

        Raises:
            RequestError: the grammar is wrong, cannot be enforced, or is too complex.
        """
        source = json.dumps(self._writer.write(spec, reasoning))
        try:
            return call_on_stack(STACK_BYTES, lambda: self._compile(source, spec))
        except RequestError:
            raise
        except BaseException as error:
            _let_through(error)
            raise _refusal(spec, str(error)) from error

    def _compile(self, source: str, spec: GrammarSpec) -> Grammar:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        first = np.zeros(self._words, np.uint32)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(first.ctypes.data, first.nbytes)
        if matcher.is_error():
            raise _refusal(spec, matcher.get_error())
        if self._allowed is not None:
            first &= self._allowed
        return Grammar(matcher, first, self._allowed)


def _refusal(spec: GrammarSpec, message: str) -> RequestError:
    tool = find_tool_at(spec, message) if isinstance(spec, ToolCalls) else None
    what = f"{spec!r:.120}" if tool is None else f"tool {tool.name!r}"
    why = explain_failure(message)
    schema = tool.schema if tool is not None else spec.schema if isinstance(spec, JsonSchema) else None
    if place := find_unknown_keyword(schema, message):
        why = f"{why} at {place:.120}"
    return RequestError(f"{what} cannot be enforced: {why}; correct it, or ask for plain text")


def _let_through(error: BaseException) -> None:
    """A panic of Rust is no Exception; what else is none is not for us."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _tokens_of(data: Mapping[str, Any], vocab_size: int, never: Sequence[int]) -> np.ndarray | None:
    """A mask of the tokens that a tokenizer has, without some; None where that is every bit."""
    vocab = data["model"]["vocab"]
    ids = [*(vocab.values() if isinstance(vocab, Mapping) else range(len(vocab)))]
    ids += [token["id"] for token in data.get("added_tokens", ())]
    bits = np.zeros(-(-vocab_size // 32) * 32, bool)
    bits[ids] = True
    bits[list(never)] = False
    return None if bits[:vocab_size].all() else np.packbits(bits, bitorder="little").view(np.uint32)
