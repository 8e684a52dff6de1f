"""The original's answers on disk, so that the teacher runs once however long the student trains.

Kept is the final hidden state at each scored position, from which the head gives all logits back.
For SmolLM2 that is 1,152 bytes: as many as the 288 likeliest tokens with their logits would take,
and exact where those leave out the tail. Wider models have wider states, but the head's product
that a list of logits would save is small beside their layers. float16 rounds eight times finer than
bfloat16, and behind an RMSNorm nothing is beyond its range: |x| <= sqrt(hidden_size) * |weight|.
Measured on 1,024 tokens of SmolLM2: rounding the state costs 4e-7 nat (in bfloat16 3e-5), computing all
matrices in bfloat16 3e-4.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kvfold.export.heal.student.student import TrainedModel
from kvfold.export.model.mapped_tensor import map_tensor
from kvfold.plugins.contract.write_aside import write_aside

STATES, FILLED = "teacher", "teacher.filled"


def scored_positions(count: int, length: int, share: float, seed: int) -> Tensor:
    """The positions of each sequence that are compared, sorted, int64 [count, about share * length]."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, length, generator=generator)
    return draws.topk(max(1, round(share * length)), dim=1).indices.sort(dim=1).values


class TeacherCache:
    """Hidden states float16 [N, positions, hidden_size] in a mapped file that is filled in order.

    Attributes:
        positions: int64 [N, positions], where they were taken.
    """

    def __init__(self, folder: Path, positions: Tensor, hidden_size: int) -> None:
        """Open or begin `folder`/teacher; how far it is filled stands beside it."""
        self.positions = positions
        self._path = folder / STATES
        self._progress = folder / FILLED
        self.states = map_tensor(self._path, (*positions.shape, hidden_size), torch.float16)

    @property
    def missing(self) -> bool:
        """Whether there are sequences that the teacher has not answered yet."""
        return self._filled() < len(self.positions)

    def fill(self, teacher: TrainedModel, tokens: Tensor, rows: int, report: Callable[[float], None]) -> None:
        """Run the teacher over the sequences [N, L] that are still missing, `rows` at a time."""
        for start in range(self._filled(), len(tokens), rows):
            batch = slice(start, start + rows)
            with torch.no_grad():
                positions = self.positions[batch].to(teacher.device)
                self.states[batch] = pick(teacher.hidden(tokens[batch]), positions).half()
            stop = min(start + rows, len(tokens))
            self._sync()
            write_aside(self._progress, partial(Path.write_text, data=str(stop)))
            report(stop / len(tokens))

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete the files, if there are any."""
        for name in (FILLED, STATES):
            (folder / name).unlink(missing_ok=True)

    def _filled(self) -> int:
        return int(self._progress.read_text()) if self._progress.exists() else 0

    def _sync(self) -> None:
        """States reach the disk before the number that vouches for them."""
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def pick(hidden: Tensor, positions: Tensor) -> Tensor:
    """hidden [B, n, d] at positions [B, n] of hidden [B, L, d]."""
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
