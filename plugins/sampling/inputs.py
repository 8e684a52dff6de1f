"""Random sampling inputs, as numpy arrays, for the parity test of every backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfold.plugins.sampling.schema import SamplingRow


@dataclass(frozen=True)
class Case:
    """What to generate: rows with the same parameters, each with logits, ids and a draw of its own.

    Attributes:
        vocab: logits a row.
        rows: how many.
        spread: standard deviation of the logits.
        levels: round logits to multiples of spread / levels, so that many are equal; 0 leaves them.
        allowed: share of tokens that a mask allows; None masks nothing.
        biased, seen, banned: tokens with a bias, with a count, and without a chance.
        likely: how many likeliest tokens to tell; None tells nothing.
    """

    vocab: int
    rows: int = 2
    spread: float = 3.0
    levels: int = 0
    allowed: float | None = None
    biased: int = 0
    seen: int = 0
    banned: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    likely: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """Logits float32 [rows, vocab], and how each row is sampled."""

    logits: np.ndarray
    rows: tuple[SamplingRow, ...]


def make_inputs(case: Case) -> Inputs:
    """Arrays for one case; the same case always gives the same arrays."""
    rng = np.random.default_rng(case.seed)
    logits = rng.standard_normal((case.rows, case.vocab))
    if case.levels:
        logits = np.rint(logits * case.levels) / case.levels
    return Inputs((logits * case.spread).astype(np.float32), tuple(_row(case, rng) for _ in range(case.rows)))


def _row(case: Case, rng: np.random.Generator) -> SamplingRow:
    biased, seen, banned = (_ids(rng, case.vocab, n) for n in (case.biased, case.seen, case.banned))
    return SamplingRow(
        temperature=case.temperature,
        top_k=case.top_k,
        top_p=case.top_p,
        min_p=case.min_p,
        repetition_penalty=case.repetition_penalty,
        frequency_penalty=case.frequency_penalty,
        presence_penalty=case.presence_penalty,
        draw=float(rng.random()),
        likely=case.likely,
        mask=None if case.allowed is None else _mask(rng, case.vocab, case.allowed),
        bias_ids=biased,
        bias_values=rng.uniform(-10, 10, len(biased)).astype(np.float32),
        seen_ids=seen,
        seen_counts=rng.integers(0, 4, len(seen), dtype=np.int32),
        banned_ids=banned,
    )


def _ids(rng: np.random.Generator, vocab: int, count: int) -> np.ndarray:
    return rng.permutation(vocab)[:count].astype(np.int32)


def _mask(rng: np.random.Generator, vocab: int, allowed: float) -> np.ndarray:
    """Bits behind the last token are set now and then: they mean nothing."""
    bits = rng.random(-(-vocab // 32) * 32) < allowed
    return np.packbits(bits, bitorder="little").view(np.uint32)
