"""StepShape: every size of a step's arrays, and the largest that limits allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.engine_config import StepLimits
from kvfold.runtime.engine.protocol import StepInputs


@dataclass(frozen=True)
class StepShape:
    """Every size of a step's arrays.

    Attributes:
        tokens: T.
        sequences: B.
        rows: R, rows whose logits are wanted.
        table_widths: columns of each group's block table, in the plan's order of groups.
    """

    tokens: int
    sequences: int
    rows: int
    table_widths: tuple[int, ...]

    @classmethod
    def of(cls, step: StepInputs, plan: FoldPlan) -> Self:
        """The sizes of one step."""
        widths = tuple(step.tables[group.name].block_table.shape[1] for group in plan.groups)
        return cls(len(step.input_ids), len(step.past_seqlens), len(step.logits_indices), widths)

    @property
    def decodes(self) -> bool:
        """One new token of each sequence, as `plugins.cuda.launches.Shapes` says."""
        return self.tokens == self.sequences


def largest_shape(limits: StepLimits, plan: FoldPlan) -> StepShape:
    """The largest step within limits."""
    widths = tuple(limits.max_table_width[group.name] for group in plan.groups)
    return StepShape(limits.max_tokens, limits.max_sequences, limits.max_logits, widths)
