"""An estimate in words: apart from how it is measured, so that other words measure nothing anew."""

from __future__ import annotations

from kvfold.pipeline.quality.intervals import Estimate


def format_estimate(estimate: Estimate, form: str) -> str:
    """`1.023 (1.019, 1.028)`; the value alone where there is no interval."""
    value = format(estimate.value, form)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({format(estimate.low, form)}, {format(estimate.high, form)})"
