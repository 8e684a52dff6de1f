"""How a fold's cost was measured, in words."""

from __future__ import annotations

from kvfold.pipeline.quality.format_estimate import format_estimate
from kvfold.pipeline.quality.intervals import CONFIDENCE
from kvfold.pipeline.quality.subject_names import ORIGINAL
from kvfold.pipeline.studies.cost import FoldCost


def describe_cost(cost: FoldCost, text: str) -> str:
    """On which windows of a text named `text`, and what the original reaches there."""
    original = format_estimate(cost.perplexity.subjects[ORIGINAL], ".2f")
    return (
        f"original's perplexity {original}, {CONFIDENCE:.0%} intervals; "
        f"{cost.perplexity.windows} windows of {cost.perplexity.length:,} tokens "
        f"({cost.divergences.tokens:,} for KL); text: {text}"
    )
