"""Staging: arrays, each at its place in one pinned buffer, which goes to the GPU or comes in one copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.step_shape import StepShape
from kvfold.runtime.engine.protocol import StepInputs

ALIGNMENT = 256  # what TensorRT asks of a tensor's address
_INT32 = np.dtype(np.int32)
_INT64 = np.dtype(np.int64)


@dataclass(frozen=True)
class Binding:
    """One array.

    Attributes:
        name: of the graph input or the kernel's argument.
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
    """Name, type, shape and place of arrays, one behind the other."""

    bindings: tuple[Binding, ...]

    @property
    def nbytes(self) -> int:
        """Bytes from the buffer's start to the end of the last array."""
        return self.bindings[-1].offset + self.bindings[-1].nbytes

    def offset(self, name: str) -> int:
        """Bytes from the buffer's start to an array."""
        return next(each.offset for each in self.bindings if each.name == name)


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
    return lay_out(arrays)


def lay_out(arrays: Iterable[tuple[str, np.dtype, tuple[int, ...]]]) -> BindingTable:
    """Places for arrays of these names, types and shapes, in order."""
    bindings: list[Binding] = []
    offset = 0
    for name, dtype, shape in arrays:
        bindings.append(Binding(name, dtype, shape, offset))
        offset += -(-bindings[-1].nbytes // ALIGNMENT) * ALIGNMENT
    return BindingTable(tuple(bindings))


class Staging:
    """A pinned buffer of the host. It may be written or read once its last copy is done: `wait`.

    Attributes:
        address: of the device's buffer.
        size: bytes of either.
    """

    def __init__(self, device: Device, address: int, size: int) -> None:
        """As large as the device's buffer at `address`: `size` bytes, the largest step's binding table."""
        self.address = address
        self.size = size
        self._device = device
        self._host = device.allocate_pinned(size)
        self._copied = device.new_event()

    def arrays(self, table: BindingTable) -> dict[str, np.ndarray]:
        """The pinned bytes of each array of a table, by name."""
        return {
            binding.name: self._host[binding.offset : binding.offset + binding.nbytes]
            .view(binding.dtype)
            .reshape(binding.shape)
            for binding in table.bindings
        }

    def upload(self, table: BindingTable) -> None:
        """Put one copy of all of a table's arrays on the stream."""
        self._device.upload(self.address, self._host[: table.nbytes])
        self._device.record(self._copied)

    def download(self, table: BindingTable) -> None:
        """Put one copy of all of a table's arrays from the device on the stream."""
        self._device.download(self._host[: table.nbytes], self.address)
        self._device.record(self._copied)

    def wait(self) -> None:
        """Wait until the last copy, and what was put on the stream before it, is done; not for what follows.

        Raises:
            KvfoldError: something of that failed.
        """
        self._device.reach(self._copied)


def write_step(arrays: Mapping[str, np.ndarray], step: StepInputs) -> None:
    """Copy a step into arrays of its own size or of a larger decode step's.

    The rest becomes dummy sequences of one token: nothing past, no page to see (their attention is zeros), no
    slot to write. Further wanted rows repeat row 0. All of it comes after the real rows, so their logits are
    the first ones and the others are not copied back.
    """
    _write(arrays[contract.INPUT_IDS], step.input_ids, 0)
    _write(arrays[contract.PAST_SEQLENS], step.past_seqlens, 0)
    _write(arrays[contract.LOGITS_INDICES], step.logits_indices, 0)
    cumulative = arrays[contract.CUMULATIVE_SEQUENCE_LENGTH]
    given = len(step.cumulative_sequence_length)
    cumulative[:given] = step.cumulative_sequence_length
    cumulative[given:] = np.arange(given, len(cumulative))  # one token each, as decode steps alone are padded
    for group, tables in step.tables.items():
        _write(arrays[contract.block_table(group)], tables.block_table, -1)
        _write(arrays[contract.slot_mapping(group)], tables.slot_mapping, -1)


def _write(target: np.ndarray, source: np.ndarray, padding: int) -> None:
    if target.shape != source.shape:
        target.fill(padding)
    target[tuple(slice(size) for size in source.shape)] = source
