"""The text that is trained on: sequences of one or several lengths under one numbering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Held out of a training by the clock: of each length's sequences the last one in so many, and so many tokens
# in all at most.
HELD_OUT_SHARE, HELD_OUT_TOKENS = 32, 65_536


@dataclass(frozen=True)
class TrainingText:
    """Sequences, numbered through all parts.

    Attributes:
        parts: int64 [N, L] each, no two of one length.
    """

    parts: tuple[Tensor, ...]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, int64 [sequences]."""
        return torch.cat([torch.full((len(part),), part.shape[1]) for part in self.parts])

    @property
    def tokens(self) -> int:
        """How many there are in all."""
        return sum(part.numel() for part in self.parts)

    @property
    def largest(self) -> Tensor:
        """The part with most tokens."""
        return max(self.parts, key=Tensor.numel)

    def by_length(self, rows: Tensor) -> Iterator[Tensor]:
        """Some sequences' numbers as passes can take them: those of one length together, in their order."""
        for start, stop in self._spans():
            own = rows[(rows >= start) & (rows < stop)]
            if len(own):
                yield own

    def take(self, rows: Tensor, of: tuple[Tensor, ...] | None = None) -> Tensor:
        """Sequences [n, L] of one length, or their rows of other tensors that are parted as the text is."""
        for part, (start, stop) in zip(of or self.parts, self._spans(), strict=True):
            if start <= rows[0] < stop:
                return part[rows - start]
        raise IndexError(f"there is no sequence {int(rows[0])}")

    def hold_out(self) -> tuple[TrainingText, TrainingText]:
        """The text without its last sequences of each length, and those; one sequence alone stays."""
        rest, held = [], []
        for part in self.parts:
            room = HELD_OUT_TOKENS // len(self.parts) // part.shape[1]
            count = min(max(1, min(len(part) // HELD_OUT_SHARE, room)), len(part) - 1)
            rest.append(part[: len(part) - count])
            held += [part[len(part) - count :]] * (count > 0)
        return TrainingText(tuple(rest)), TrainingText(tuple(held))

    def _spans(self) -> Iterator[tuple[int, int]]:
        start = 0
        for part in self.parts:
            yield start, start + len(part)
            start += len(part)
