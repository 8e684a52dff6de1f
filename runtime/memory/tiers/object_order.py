"""ObjectOrder: what to give up first, in O(log n) an object.

    priority = time of last use + LIFETIME * ln(tokens saved / bytes)

An object that saves e times the tokens a byte is kept LIFETIME longer; the order of two does not change
with time, so it can stand in a heap, and file times bring it back after a restart.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import log

LIFETIME = 3600.0


def priority(used: float, saved: int, size: int) -> float:
    """Higher is kept longer.

    Args:
        used: seconds since the epoch, of the last hit or of the writing.
        saved: tokens that need not be computed; 0 where no hit can use the object.
        size: bytes; 0 of a file that was cut, which is found when it is read.
    """
    return used + LIFETIME * log(saved / max(size, 1)) if saved else used - LIFETIME * 1e6


class ObjectOrder:
    """A heap whose entries may be out of date: each is checked for truth when it is taken out."""

    def __init__(self, current: Callable[[int], float | None]) -> None:
        """Empty.

        Args:
            current: the priority of an object by its place; None where it cannot be given up.
        """
        self._current = current
        self._entries: list[tuple[float, int]] = []
        self._limit = 64

    def push(self, place: int) -> None:
        """Enter an object that can be given up, after each change of its priority."""
        value = self._current(place)
        if value is None:
            return
        heapq.heappush(self._entries, (value, place))
        if len(self._entries) > self._limit:
            self._entries = sorted({entry for entry in self._entries if self._current(entry[1]) == entry[0]})
            self._limit = 64 + 2 * len(self._entries)

    def first(self) -> int | None:
        """The object to give up first; it stays in the order while that is true of it."""
        while self._entries:
            value, place = self._entries[0]
            if self._current(place) == value:
                return place
            heapq.heappop(self._entries)
        return None
