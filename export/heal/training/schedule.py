"""How far a step is, by its updates or by the clock; what its learning rate then is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import cos, pi
from typing import Protocol

from kvfold.export.heal.heal_settings import HealSettings


class Clock:
    """Seconds that a training has worked, over all processes that went on with it."""

    def __init__(self, spent: float = 0.0) -> None:
        self._start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Until now."""
        return time.monotonic() - self._start


class Schedule(Protocol):
    """A step's way from beginning to end."""

    def done(self, update: int) -> float:
        """The fraction 0..1 of the step that lies behind when an update, counted from 1, begins."""

    def is_over(self, update: int) -> bool:
        """Whether there is no such update any more."""


@dataclass(frozen=True)
class ByUpdates:
    """So many updates."""

    updates: int

    def done(self, update: int) -> float:
        """As Schedule's."""
        return min(1.0, (update - 1) / self.updates)

    def is_over(self, update: int) -> bool:
        """As Schedule's."""
        return update > self.updates


class ByClock:
    """From one moment of a clock to another; at least one update."""

    def __init__(self, clock: Clock, start: float, end: float) -> None:
        self._clock, self._start, self._end = clock, start, end
        self._last: float | None = None

    def done(self, update: int) -> float:
        """As Schedule's."""
        share = (self._clock.spent - self._start) / max(self._end - self._start, 1e-9)
        return min(1.0, max(0.0, share))

    def is_over(self, update: int) -> bool:
        """As Schedule's: an update that takes as long as the last one would end too late."""
        now = self._clock.spent
        took, self._last = now - (now if self._last is None else self._last), now
        return update > 1 and now + took > self._end


def rate_share(update: int, done: float, settings: HealSettings) -> float:
    """Share of the peak rate in update 1..: linear warm-up, half a cosine down to `final_rate`."""
    warm = min(1.0, update / (settings.warmup_steps + 1))
    return warm * (settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + cos(pi * done)))
