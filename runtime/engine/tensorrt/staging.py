"""Staging: a step's arrays in one pinned buffer, which reaches the GPU in one copy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kvfold.plugins.contract import step as contract
from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.engine.tensorrt.bindings import BindingTable
from kvfold.runtime.engine.tensorrt.device import Device


class Staging:
    """The pinned buffer and its twin on the device. The host may write again once the copy is done."""

    def __init__(self, device: Device, size: int) -> None:
        """Room for the largest step's binding table, in bytes."""
        self._device = device
        self._host = device.allocate_pinned(size)
        self.address = device.allocate(size)

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
