"""Buckets: the few shapes that decode steps are padded to, since a captured CUDA graph has fixed shapes.

Batch sizes double: a decode step is bound by reading the weights once, whatever the batch, so up to twice the
rows cost little, and 64 sequences need 7 sizes. Table widths quadruple from 16 pages: a wider table costs
only splits of the attention kernel that find nothing and return, and 8,192 pages need 6 widths. So one
conversation growing through 131,072 tokens meets 6 graphs, not one for each page. All groups share a width
bucket, as their tables grow together, position by position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.cuda.step_shape import StepShape
from kvfold.runtime.engine.engine_config import StepLimits

FIRST_WIDTH = 16


@dataclass(frozen=True)
class DecodeBuckets:
    """Padded sizes, growing.

    Attributes:
        batches: numbers of sequences (and tokens).
        widths: columns of the widest group's block table.
        limits: of the decode profile; narrower groups are padded to their own most columns.
        groups: names in the plan's order.
    """

    batches: tuple[int, ...]
    widths: tuple[int, ...]
    limits: StepLimits
    groups: tuple[str, ...]

    @classmethod
    def of(cls, limits: StepLimits, plan: FoldPlan) -> Self:
        """The buckets of a plan's decode profile."""
        widest = max(limits.max_table_width.values())
        return cls(
            batches=_grow(1, 2, limits.max_sequences),
            widths=_grow(FIRST_WIDTH, 4, widest),
            limits=limits,
            groups=tuple(group.name for group in plan.groups),
        )

    def pad(self, shape: StepShape) -> StepShape:
        """The smallest bucket that holds a step within the decode profile's limits."""
        batch = _first_at_least(self.batches, shape.sequences)
        width = _first_at_least(self.widths, max(shape.table_widths))
        widths = tuple(min(width, self.limits.max_table_width[group]) for group in self.groups)
        return StepShape(batch, batch, min(batch, self.limits.max_logits), widths)


def _grow(first: int, factor: int, last: int) -> tuple[int, ...]:
    """`first`, then `factor` times as much, and `last` in place of the first that reaches it."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= factor
    return (*sizes, last)


def _first_at_least(sizes: tuple[int, ...], size: int) -> int:
    return next(candidate for candidate in sizes if candidate >= size)
