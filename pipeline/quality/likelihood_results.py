"""Perplexity and divergence as they are stored: what was measured of next-token distributions."""

from __future__ import annotations

from kvfold.pipeline.quality.intervals import Estimate
from kvfold.plugins.contract.record import Record


class Perplexity(Record):
    """Perplexity in windows of one length, by subject.

    Attributes:
        length: tokens of a window; every token but its first is predicted from those before it.
        windows: how many; the unit that intervals are computed over.
        ratios: over the original's, of the same windows, so that a hard text does not widen it.
    """

    length: int
    windows: int
    subjects: dict[str, Estimate]
    ratios: dict[str, Estimate]


class Divergence(Record):
    """A candidate's next-token distributions against the original's.

    Attributes:
        candidate: folded, engine, or the original in bfloat16: the noise floor.
        kl_mean, kl_median, kl_p99: KL(original || candidate) in nat per token.
        top1_agreement: share of tokens with the same likeliest next token.
        flips: share where it changes (1 - top1_agreement).
        flips_lost, flips_gained: share where the original alone, or the candidate alone, is right about
            the token that the text goes on with.
    """

    candidate: str
    kl_mean: Estimate
    kl_median: Estimate
    kl_p99: Estimate
    top1_agreement: Estimate
    flips: Estimate
    flips_lost: Estimate
    flips_gained: Estimate


class Divergences(Record):
    """All candidates over the same tokens.

    Attributes:
        length: tokens of a window.
        windows: how many.
        tokens: positions compared.
    """

    length: int
    windows: int
    tokens: int
    candidates: tuple[Divergence, ...]
