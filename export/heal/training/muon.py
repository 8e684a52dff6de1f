"""Muon over many matrices at once: those of about one shape are orthogonalised as one batch.

Muon steps along the orthogonal matrix nearest to the averaged gradient, found by Newton and Schulz's
iteration in bfloat16 (https://kellerjordan.github.io/posts/muon/); the size of a step is AdamW's (arXiv
2502.16982). `torch.optim.Muon` takes the matrices one after the other. Healing has a few hundred small ones,
which on a GPU would be thousands of launches an update. Rows of zeros stay zeros all through the iteration,
so matrices that differ in their shorter side alone are filled up with them and share a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

MOMENTUM = 0.95  # with Nesterov's look ahead
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPSILON = 1e-7
SIZE_OF_ADAMW = 0.2  # root mean square of an AdamW step's elements, measured in arXiv 2502.16982
SHORT_SIDE = 32  # shorter sides are filled up to a multiple of it


@dataclass(frozen=True)
class _Batch:
    """Matrices of one longer side.

    Attributes:
        matrices: float32, [a, b].
        averages: of their gradients, each lying on its longer side, [matrices, short, long].
    """

    matrices: list[Tensor]
    averages: Tensor

    def lying(self, stack: Tensor) -> list[Tensor]:
        """Views of each matrix' part of a stack, in the matrix' own shape."""
        parts = []
        for matrix, whole in zip(self.matrices, stack, strict=True):
            rows, columns = matrix.shape
            parts.append(whole[:rows, :columns] if rows <= columns else whole[:columns, :rows].T)
        return parts


class Muon:
    """Its learning rate moves an element as far as AdamW's would; no weight decay."""

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        """`matrices` are float32 leaves [a, b] on one device, changed in place."""
        groups: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            short, long = sorted(matrix.shape)
            groups[min(long, -(-short // SHORT_SIDE) * SHORT_SIDE), long].append(matrix)
        self._batches = [
            _Batch(group, torch.zeros(len(group), *shape, device=group[0].device))
            for shape, group in groups.items()
        ]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update by the gradients of the matrices; without one, a matrix stays."""
        for batch in self._batches:
            gradients = torch.zeros_like(batch.averages)
            given = [x.grad for x in batch.matrices]
            for part, gradient in zip(batch.lying(gradients), given, strict=True):
                if gradient is not None:
                    part.copy_(gradient)
            batch.averages.lerp_(gradients, 1 - MOMENTUM)
            steps = _orthogonal(gradients.lerp_(batch.averages, MOMENTUM)).float()
            size = SIZE_OF_ADAMW * sqrt(batch.averages.shape[-1])
            torch._foreach_add_(batch.matrices, batch.lying(steps), alpha=-rate * size)

    def state(self) -> list[Tensor]:
        """What `restore` goes on from."""
        return [batch.averages for batch in self._batches]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Take up the state of a Muon over matrices of the same shapes in the same order."""
        for batch, averages in zip(self._batches, state, strict=True):
            batch.averages.copy_(averages)


def _orthogonal(stack: Tensor) -> Tensor:
    """About the orthogonal matrix nearest to each of [matrices, short, long], bfloat16."""
    first, second, third = COEFFICIENTS
    x = stack.bfloat16()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPSILON)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        change = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        x = torch.baddbmm(x, change, x, beta=first)
    return x
