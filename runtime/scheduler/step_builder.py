"""StepBuilder: packs the chunks of a step into the engine's inputs, in buffers made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvfold.runtime.engine.protocol import GroupTables, StepInputs
from kvfold.runtime.memory.paged_sequence import PagedSequence


@dataclass(frozen=True)
class Chunk:
    """Positions [start, end) of a sequence, computed in one step.

    Attributes:
        sequence: whose tokens; its tables map them.
        start: first position.
        end: one past the last.
        wanted: positions of them whose logits are wanted.
    """

    sequence: PagedSequence
    start: int
    end: int
    wanted: range


class StepBuilder:
    """Builds StepInputs; their arrays are valid until the next call."""

    def __init__(
        self, groups: Sequence[str], page_size: int, max_tokens: int, max_seqs: int, max_pages: int
    ) -> None:
        """Buffers for the largest step: `max_pages` is the width of a full context's table."""
        self._groups = tuple(groups)
        self._page_size = page_size
        self._ids = np.zeros(max_tokens, np.int64)
        self._cumulative = np.zeros(max_seqs + 1, np.int32)
        self._past = np.zeros(max_seqs, np.int32)
        self._rows = np.zeros(max_tokens, np.int64)
        self._slots = [np.zeros(max_tokens, np.int32) for _ in self._groups]
        self._tables = [np.zeros(max_seqs * max_pages, np.int32) for _ in self._groups]
        self._offsets = np.arange(max_tokens)

    def build(self, chunks: Sequence[Chunk]) -> StepInputs:
        """Inputs of one step; where no logits are wanted, the last row's are asked for and unused."""
        total = rows = 0
        for index, chunk in enumerate(chunks):
            count = chunk.end - chunk.start
            self._ids[total : total + count] = chunk.sequence.tokens[chunk.start : chunk.end]
            self._past[index] = chunk.start
            for table, slots in zip(chunk.sequence.tables, self._slots, strict=True):
                self._write_slots(slots[total : total + count], table, chunk.start)
            wanted = chunk.wanted
            if wanted:
                first = total + wanted.start - chunk.start
                self._rows[rows : rows + len(wanted)] = range(first, first + len(wanted))
                rows += len(wanted)
            total += count
            self._cumulative[index + 1] = total
        if not rows:
            self._rows[0], rows = total - 1, 1
        tables = {
            name: GroupTables(self._block_table(group, chunks), self._slots[group][:total])
            for group, name in enumerate(self._groups)
        }
        return StepInputs(
            input_ids=self._ids[:total],
            cumulative_sequence_length=self._cumulative[: len(chunks) + 1],
            past_seqlens=self._past[: len(chunks)],
            logits_indices=self._rows[:rows],
            tables=tables,
        )

    def _write_slots(self, slots: np.ndarray, table: np.ndarray, start: int) -> None:
        size = self._page_size
        if len(slots) == 1:
            slots[0] = int(table[start // size]) * size + start % size
            return
        positions = self._offsets[: len(slots)] + start
        slots[:] = table[positions // size] * size + positions % size

    def _block_table(self, group: int, chunks: Sequence[Chunk]) -> np.ndarray:
        """Int32 [B, M], contiguous; of a single sequence its own table, without a copy."""
        width = max(chunk.sequence.num_pages for chunk in chunks)
        if len(chunks) == 1:
            return chunks[0].sequence.tables[group][None, :width]
        block_table = self._tables[group][: len(chunks) * width].reshape(len(chunks), width)
        for row, chunk in zip(block_table, chunks, strict=True):
            pages = chunk.sequence.num_pages
            row[:pages] = chunk.sequence.tables[group][:pages]
            row[pages:] = -1
        return block_table
