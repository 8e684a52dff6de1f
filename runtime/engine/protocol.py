"""The step that the scheduler hands down, and what an engine must offer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:  # a type only; pydantic would double the import time of `runtime`
    from kvfold.plugins.contract.fold_plan import FoldPlan


@dataclass(frozen=True)
class GroupTables:
    """Paging of one step for one horizon group.

    Attributes:
        block_table: int32 [B, M], page ids in order of position; -1 is freed or unused.
        slot_mapping: int32 [T], page id * page_size + offset of each new token.
    """

    block_table: np.ndarray
    slot_mapping: np.ndarray


@dataclass(frozen=True)
class StepInputs:
    """T new tokens of B sequences, packed; names and shapes as in `plugins.contract.step`."""

    input_ids: np.ndarray
    cumulative_sequence_length: np.ndarray
    past_seqlens: np.ndarray
    logits_indices: np.ndarray
    tables: Mapping[str, GroupTables]


@dataclass(frozen=True)
class EngineInfo:
    """What the scheduler must know of an engine.

    Attributes:
        plan: the FoldPlan the engine was built from.
        num_pages: pages of each horizon group's pool, by group name.
        vocab_size: width of the logits.
        max_context_length: longest sequence in tokens.
        fingerprint: identifies model, plan and scales.
    """

    plan: FoldPlan
    num_pages: Mapping[str, int]
    vocab_size: int
    max_context_length: int
    fingerprint: str


class Engine(Protocol):
    """Executes steps; its KV pools stay bound in place between them."""

    @property
    def info(self) -> EngineInfo:
        """Constant for the engine's life."""
        ...

    def execute(self, step: StepInputs) -> np.ndarray:
        """Run one step and return logits, float32 [R, vocab_size]; the caches are updated in place."""
        ...
