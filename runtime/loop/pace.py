"""Pace: what steps take, and how much of a prompt fits into one beside running replies."""

from __future__ import annotations

# Weight of the newest step in the averages: the last dozen decide.
NEWEST = 0.2
# Tokens of a prompt that a step takes at least, so that it gets on whatever the target is.
LEAST_PREFILL = 16


class Pace:
    """Averages over steps.

    A step's time is that of its running replies, as it was in the last steps without a prompt, and a time
    for each token of a prompt. Both change slowly, with the number of replies and with their lengths.

    Attributes:
        prefill_rate: prompt tokens a second; 0 before the first.
        decode_rate: tokens of replies a second, all together; 0 before the first.
    """

    def __init__(self, target: float | None) -> None:
        """`target`: seconds that a step with running replies may take; None: any."""
        self._target = target
        self._decode_seconds = 0.0
        self.prefill_rate = 0.0
        self.decode_rate = 0.0

    def note(self, prefill: int, decode: int, seconds: float) -> None:
        """A step of so many prompt tokens and running replies took so long; none where the clock says so."""
        if seconds <= 0:
            return
        if not prefill:
            self._decode_seconds = _average(self._decode_seconds, seconds)
            self.decode_rate = _average(self.decode_rate, decode / seconds)
            return
        own = seconds - (self._decode_seconds if decode else 0.0)
        self.prefill_rate = _average(self.prefill_rate, prefill / max(own, seconds / 2))

    def most_prefill(self, decoding: int) -> int | None:
        """Tokens of prompts that the next step may take beside so many running replies; None is no limit."""
        if self._target is None or not decoding or not self.prefill_rate:
            return None
        return max(LEAST_PREFILL, int((self._target - self._decode_seconds) * self.prefill_rate))


def _average(before: float, newest: float) -> float:
    return newest if before == 0 else before + NEWEST * (newest - before)
