"""The binding table: name, type, shape and place in one buffer of every array of a step."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.tensorrt.profiles import StepShape

ALIGNMENT = 256  # what TensorRT asks of a tensor's address
_INT32 = np.dtype(np.int32)
_INT64 = np.dtype(np.int64)


@dataclass(frozen=True)
class Binding:
    """One graph input of a step.

    Attributes:
        name: of the graph input.
        dtype: of its elements.
        shape: of the array.
        offset: bytes from the buffer's start, a multiple of ALIGNMENT.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.dtype.itemsize * prod(self.shape)


@dataclass(frozen=True)
class BindingTable:
    """All graph inputs of a step but the caches, one behind the other."""

    bindings: tuple[Binding, ...]

    @property
    def nbytes(self) -> int:
        """Bytes from the buffer's start to the end of the last array."""
        return self.bindings[-1].offset + self.bindings[-1].nbytes


def bind_step(shape: StepShape, plan: FoldPlan) -> BindingTable:
    """Where each input of a step of these sizes lies; types and shapes as in `plugins.contract.step`."""
    arrays: list[tuple[str, np.dtype, tuple[int, ...]]] = [
        (contract.INPUT_IDS, _INT64, (shape.tokens,)),
        (contract.CUMULATIVE_SEQUENCE_LENGTH, _INT32, (shape.sequences + 1,)),
        (contract.PAST_SEQLENS, _INT32, (shape.sequences,)),
        (contract.LOGITS_INDICES, _INT64, (shape.rows,)),
    ]
    for group, width in zip(plan.groups, shape.table_widths, strict=True):
        arrays.append((contract.block_table(group.name), _INT32, (shape.sequences, width)))
        arrays.append((contract.slot_mapping(group.name), _INT32, (shape.tokens,)))
    bindings: list[Binding] = []
    offset = 0
    for name, dtype, array_shape in arrays:
        bindings.append(Binding(name, dtype, array_shape, offset))
        offset += -(-bindings[-1].nbytes // ALIGNMENT) * ALIGNMENT
    return BindingTable(tuple(bindings))
