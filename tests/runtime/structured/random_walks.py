"""Random replies under a grammar: tokens drawn from its masks, over a byte-level BPE made here."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from kvfold.runtime.structured.grammar_compiler import GrammarCompiler
from kvfold.runtime.structured.token_constraint import TokenConstraint

SPECIAL = ("<|end|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]")
EOS = 0
# Logits that the model has beyond its tokens, so that the last word of a mask is not the tokenizer's.
EXTRA = 45
# JSON as models print it: so that tokens cross the borders of what a grammar knows.
CORPUS = (
    '{"name": "Ada Lovelace", "age": 36, "tags": ["red", "green"], "address": {"street": "Main"}}',
    '{\n  "name": "get_weather",\n  "arguments": {\n    "city": "Paris"\n  }\n}',
    '[1, 2.5, -3e10, true, false, null, {"a": {"b": {"c": []}}}]',
    "I will call a tool. The weather in London is fine, naïve café, 日本語.",
)


@cache
def tiny_bpe() -> Tokenizer:
    """Bytes, a hundred merges of them, and control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + 256 + 100,
        special_tokens=[AddedToken(text, normalized=False) for text in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def vocab_size() -> int:
    """Width of the model's logits."""
    return int(tiny_bpe().get_vocab_size()) + EXTRA


@cache
def tiny_compiler() -> GrammarCompiler:
    """Over the tokenizer above."""
    return GrammarCompiler(tiny_bpe().to_str(), vocab_size(), [EOS])


def allowed(constraint: TokenConstraint, width: int | None = None) -> np.ndarray:
    """Ids that may come next."""
    mask = np.full(-(-(width or vocab_size()) // 32), 0xFFFFFFFF, np.uint32)
    constraint.fill_mask(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def walk(constraint: TokenConstraint, seed: int, free: int = 60, once: Sequence[int] = ()) -> list[int]:
    """Tokens of a reply, the end of sequence not among them.

    After `free` uniform draws it takes each of `once` where it is first allowed, else what closes something,
    where that is allowed: chance alone would leave few strings and lists.

    Raises:
        AssertionError: it does not end, or a state allows nothing.
    """
    rng, left, tokens = random.Random(seed), list(once), list[int]()
    while not constraint.finished:
        ids = allowed(constraint)
        assert len(ids) and len(tokens) < 2_000, f"{spell(tokens[:50])} ..."
        chosen = int(rng.choice(ids))
        if len(tokens) >= free:
            possible = set(ids.tolist())
            chosen = next((token for token in (*left, *closing_tokens()) if token in possible), chosen)
            left = [token for token in left if token != chosen]
        constraint.accept(chosen)
        if chosen == EOS:
            break
        tokens.append(chosen)
    return tokens


@cache
def closing_tokens() -> tuple[int, ...]:
    """Tokens that end what was begun."""
    return (EOS, *(tiny_bpe().token_to_id(sign) for sign in ('"', "}", "]")))


def spell(tokens: Iterable[int]) -> str:
    """The text of tokens, control tokens included."""
    return str(tiny_bpe().decode(list(tokens), skip_special_tokens=False))
