"""The four verbs of a constraint: masks, tokens accepted and taken back, the end."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.structured.grammar_compiler import GrammarCompiler
from kvfold.runtime.structured.grammar_spec import Choice, GrammarSpec, JsonSchema, Lark, Regex, ToolCalls
from kvfold.runtime.structured.reasoning import Reasoning
from kvfold.runtime.structured.tools import Tool
from tests.runtime.structured.json_schemas import PERSON, TREE
from tests.runtime.structured.random_walks import (
    EOS,
    EXTRA,
    SPECIAL,
    allowed,
    tiny_bpe,
    tiny_compiler,
    vocab_size,
)

TOOLS = (Tool("look_up", parameters=PERSON), Tool("stop"))
SPECS: dict[str, tuple[GrammarSpec, Reasoning | None]] = {
    "person": (JsonSchema(PERSON), None),
    "tree": (JsonSchema(TREE), Reasoning("<think>", "</think>")),
    "regex": (Regex(r"(a|bc)*[0-9]{2,}é"), None),
    "choice": (Choice(("yes", "yes, but", "no")), None),
    "grammar": (Lark('start: NAME ("," NAME)*\nNAME: /[a-z]+/'), None),
    "tools": (ToolCalls(TOOLS), Reasoning("[THINK]", "[/THINK]", opened=True)),
    "one tool": (ToolCalls(TOOLS[:1], "required", parallel=False), None),
}


@pytest.mark.parametrize("name", SPECS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), before=st.integers(0, 30), count=st.integers(1, 30))
def test_what_was_taken_back_leaves_no_trace(name: str, seed: int, before: int, count: int) -> None:
    constraint = tiny_compiler().compile(*SPECS[name]).constraint()
    rng = random.Random(seed)

    def go(steps: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < steps and not constraint.finished:
            taken.append(int(rng.choice(allowed(constraint))))
            constraint.accept(taken[-1])
        return taken

    go(before)
    finished, mask = constraint.finished, allowed(constraint)
    taken = go(count)
    after = allowed(constraint)
    constraint.rollback(len(taken))
    assert constraint.finished == finished
    np.testing.assert_array_equal(allowed(constraint), mask)
    for token in taken:  # and the same way can be gone again
        constraint.accept(token)
    np.testing.assert_array_equal(allowed(constraint), after)


def read(constraint_of: GrammarSpec, text: str) -> list[bool]:
    """For each byte of a text, whether the reply is then finished; raises where one is not allowed."""
    constraint = tiny_compiler().compile(constraint_of).constraint()
    finished = []
    for byte in text.encode():
        token = next(
            i
            for i in allowed(constraint).tolist()
            if tiny_compiler()._tokenizer.decode_bytes([i]) == bytes([byte])
        )
        constraint.accept(token)
        finished.append(constraint.finished)
    return finished


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_a_token_is_accepted_where_the_mask_has_it_and_nowhere_else(name: str, seed: int) -> None:
    constraint = tiny_compiler().compile(*SPECS[name]).constraint()
    rng = random.Random(seed)
    for _ in range(25):
        accepted = []
        for token in range(vocab_size()):
            try:
                constraint.accept(token)
            except RequestError:
                continue
            accepted.append(token)
            constraint.rollback(1)
        assert accepted == allowed(constraint).tolist()
        if constraint.finished:
            return
        constraint.accept(rng.choice(accepted))


def test_a_reply_is_finished_where_nothing_can_follow() -> None:
    assert read(Regex("ab?"), "ab") == [False, True]
    assert read(JsonSchema({"type": "array", "maxItems": 0}), "[]") == [False, True]
    assert read(JsonSchema({"type": "integer"}), "12") == [False, False]


def test_an_end_is_allowed_where_the_grammar_is_complete_and_then_nothing_else() -> None:
    constraint = tiny_compiler().compile(Regex("(ab)+")).constraint()
    a, b = (tiny_bpe().token_to_id(letter) for letter in "ab")
    assert EOS not in allowed(constraint)
    constraint.accept(a)
    assert EOS not in allowed(constraint)
    constraint.accept(b)
    assert EOS in allowed(constraint) and not constraint.finished
    constraint.accept(EOS)
    assert constraint.finished
    assert allowed(constraint).tolist() == [EOS]
    constraint.accept(EOS)
    constraint.rollback(2)
    assert a in allowed(constraint) and EOS in allowed(constraint)


def test_every_end_of_a_model_is_one() -> None:
    ends = [EOS, tiny_bpe().token_to_id("</think>")]
    compiler = GrammarCompiler(tiny_bpe().to_str(), vocab_size(), ends)
    constraint = compiler.compile(Regex("")).constraint()
    assert allowed(constraint).tolist() == ends


def test_a_model_without_an_end_never_gets_one() -> None:
    compiler = GrammarCompiler(tiny_bpe().to_str(), vocab_size(), [])
    constraint = compiler.compile(Regex("(ab)*")).constraint()
    assert tiny_bpe().decode(allowed(constraint).tolist()) == "a"


@pytest.mark.parametrize("extra", [0, 1, 31, 32, 33, EXTRA, 500])
def test_logits_beyond_the_tokenizer_are_never_allowed(extra: int) -> None:
    known = tiny_bpe().get_vocab_size()
    compiler = GrammarCompiler(tiny_bpe().to_str(), known + extra, [EOS])
    for spec in (Lark("start: <[*]>"), Lark("start: <[^1]>"), Regex("(?s:.*)")):
        constraint = compiler.compile(spec).constraint()
        assert allowed(constraint, known + extra).max() < known
        constraint.accept(20)
        assert constraint.finished or allowed(constraint, known + extra).max() < known


def test_control_tokens_are_no_text() -> None:
    special = {tiny_bpe().token_to_id(token) for token in SPECIAL}
    constraint = tiny_compiler().compile(Regex("(?s:.*)")).constraint()
    assert special & set(allowed(constraint).tolist()) == {EOS}


@pytest.mark.parametrize("count", [1, 3])
def test_more_than_was_read_cannot_be_taken_back(count: int) -> None:
    constraint = tiny_compiler().compile(Regex("a+")).constraint()
    for _ in range(count - 1):
        constraint.accept(tiny_bpe().token_to_id("a"))
    with pytest.raises(
        RequestError, match=f"{count} tokens cannot be taken back; the grammar has read {count - 1}"
    ):
        constraint.rollback(count)


def test_a_token_that_is_not_allowed_changes_nothing() -> None:
    grammar = tiny_compiler().compile(Regex("a+"))
    one, other = grammar.constraint(), grammar.constraint()
    with pytest.raises(RequestError, match="may not follow 0 tokens of the reply"):
        one.accept(tiny_bpe().token_to_id("b"))
    one.accept(tiny_bpe().token_to_id("a"))
    other.accept(tiny_bpe().token_to_id("a"))
    assert EOS in allowed(other)


@pytest.mark.parametrize("spec", [Regex("(.*a.{200}){5}b"), Lark('start: a\na: "a" a "b" | "a" a | "a"')])
def test_a_grammar_that_becomes_too_complex_ends_its_reply_with_an_error(spec: GrammarSpec) -> None:
    """Its first masks are within the limits: then comes an empty mask and a reason, never a wrong end."""
    constraint = tiny_compiler().compile(spec).constraint()
    mask = np.zeros(-(-vocab_size() // 32), np.uint32)

    def go_on() -> None:
        for _ in range(2_000):
            constraint.fill_mask(mask)
            constraint.accept(tiny_bpe().token_to_id("a"))

    with pytest.raises(RequestError, match=r"after \d+ tokens of the reply: .*; make the grammar simpler"):
        go_on()
    with pytest.raises(RequestError):
        constraint.fill_mask(mask)
    assert not mask.any()
