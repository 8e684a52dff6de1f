"""What all charts share: their frame, and axes that map a data range to pixels and have round ticks."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10

# The frame's size and where its plot stands, in pixels.
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 80, 616, 16, 262


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its pixel and label."""

    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] linearly to pixels [start, end]; end may be the smaller one (y grows downwards)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of a value, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the range: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / count
        power: float = 10 ** floor(log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first, last = ceil(self.low / step), floor(self.high / step)
        return [number * step for number in range(first, last + 1)]
