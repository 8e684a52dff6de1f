"""Rungs of a ladder whose figures a test chooses."""

from __future__ import annotations

from kvfold.pipeline.quality.intervals import Estimate
from kvfold.pipeline.quality.likelihood_results import Divergence, Divergences, Perplexity
from kvfold.pipeline.quality.subject_names import FOLDED, ORIGINAL
from kvfold.pipeline.studies.cost import FoldCost
from kvfold.pipeline.studies.frontier.rungs import SHOWN_CONTEXT, Rung
from kvfold.plugins.contract.kv_savings import KvBytes


def make_rung(recipe: str, size: int, kl: float, interval: float | None = None) -> Rung:
    """A rung of a given size, KL and half an interval's width."""

    def estimate(value: float) -> Estimate:
        return (
            Estimate(value=value)
            if interval is None
            else Estimate(value=value, low=max(0, value - interval), high=value + interval)
        )

    zero = estimate(0.0)
    divergence = Divergence(
        candidate=FOLDED,
        kl_mean=estimate(kl),
        kl_median=zero,
        kl_p99=zero,
        top1_agreement=zero,
        flips=zero,
        flips_lost=zero,
        flips_gained=zero,
    )
    subjects = {ORIGINAL: estimate(9.0), FOLDED: estimate(9 + 9 * kl)}
    perplexity = Perplexity(length=8, windows=1, subjects=subjects, ratios={FOLDED: estimate(1 + kl)})
    divergences = Divergences(length=8, windows=1, tokens=8, candidates=(divergence,))
    kv = tuple(KvBytes(length, 1 << 20, size) for length in (2048, SHOWN_CONTEXT))
    return Rung(recipe=recipe, kv_bytes=kv, cost=FoldCost(perplexity=perplexity, divergences=divergences))
