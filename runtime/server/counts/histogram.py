"""Histograms of seconds: cheap to observe, since nothing is formatted before somebody scrapes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

# vLLM's buckets, so that its dashboards and alerts fit; 1 to 5 ms are ours, a small model's tokens are there.
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    *(5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0),
    *(480.0, 960.0, 1920.0, 7680.0),
)
GRAMMAR_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Histogram:
    """Counts by upper bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Bounds rise; what is above the last counts too."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """So many observations of one value."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    @property
    def bounds(self) -> Sequence[float]:
        """Upper bounds of all counts but the last."""
        return self._bounds

    @property
    def counts(self) -> Sequence[int]:
        """Values up to each bound, and those above the last."""
        return tuple(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Prometheus' form: each bound with the number of values that do not exceed it."""
        found: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            below += count
            found.append((bound, below))
        return found


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value below which a share of all counted ones lies, as Prometheus' histogram_quantile finds it.

    Within a bucket values are taken as evenly spread; above the last bound it is that bound. None: no values.
    """
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    lower = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and rank <= count:
            return lower + (bound - lower) * rank / count
        rank -= count
        lower = bound
    return lower
