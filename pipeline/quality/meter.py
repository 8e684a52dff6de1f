"""Tokens computed as a fraction of all."""

from __future__ import annotations

from collections.abc import Callable


class Meter:
    """Turns tokens computed into the fraction done."""

    def __init__(self, total: float, progress: Callable[[float], None]) -> None:
        self._total = total
        self._done = 0.0
        self._progress = progress

    def __call__(self, tokens: float) -> None:
        """So many tokens more are done."""
        self._done += tokens
        self._progress(min(1.0, self._done / self._total))
