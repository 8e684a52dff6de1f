"""StepBuilder: packs the chunks of a step into the engine's inputs, in buffers made once.

Rows of the block tables stay from step to step: a row is written again only where another sequence takes it,
or its sequence got or lost a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kvfold.runtime.engine.protocol import GroupTables, StepInputs
from kvfold.runtime.memory.paged_sequence import PagedSequence

# Tables are as wide as a power of two of pages, at least this one, so that rows seldom move.
LEAST_WIDTH = 8
NOBODY = (None, 0)


class Chunk(NamedTuple):
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

    def cut(self, size: int) -> Chunk:
        """The first `size` of its positions."""
        end = self.start + size
        return self._replace(end=end, wanted=range(self.wanted.start, end))


class StepBuilder:
    """Builds StepInputs; their arrays are valid until the next call."""

    def __init__(
        self, groups: Sequence[str], page_size: int, max_tokens: int, max_seqs: int, max_pages: int
    ) -> None:
        """Buffers for the largest step: `max_pages` is the width of a full context's table."""
        self._groups = tuple(groups)
        self._page_size = page_size
        self._max_pages = max_pages
        self._ids = np.zeros(max_tokens, np.int64)
        self._cumulative = np.zeros(max_seqs + 1, np.int32)
        self._past = np.zeros(max_seqs, np.int32)
        self._wanted = np.zeros(max_tokens, np.int64)
        self._numbers = np.arange(max(max_tokens, max_seqs))
        self._memory = np.empty((len(groups), max_seqs * max_pages), np.int32)
        self._max_seqs = max_seqs
        self._tables = self._widen(LEAST_WIDTH)

    def build(self, chunks: Sequence[Chunk]) -> StepInputs:
        """Inputs of one step; where no logits are wanted, the last row's are asked for and unused."""
        count, total, rows = len(chunks), 0, 0
        for index, (sequence, start, end, wanted) in enumerate(chunks):
            size = end - start
            if size == 1:
                self._ids[total] = sequence.tokens[start]
            else:
                self._ids[total : total + size] = sequence.tokens[start:end]
            self._past[index] = start
            for position in wanted:
                self._wanted[rows] = total + position - start
                rows += 1
            total += size
            self._cumulative[index + 1] = total
        if not rows:
            self._wanted[0], rows = total - 1, 1
        self._place(chunks)
        slots = self._slots(count, total)
        return StepInputs(
            input_ids=self._ids[:total],
            cumulative_sequence_length=self._cumulative[: count + 1],
            past_seqlens=self._past[:count],
            logits_indices=self._wanted[:rows],
            tables={
                name: GroupTables(self._tables[group, :count], slots[group])
                for group, name in enumerate(self._groups)
            },
        )

    def _place(self, chunks: Sequence[Chunk]) -> None:
        """Bring the rows of the tables, int32 [groups, rows, width], up to date."""
        width = max([chunk.sequence.num_pages for chunk in chunks])
        if not self._tables.shape[2] // 2 < width <= self._tables.shape[2]:
            self._tables = self._widen(width)
        for row, chunk in enumerate(chunks):
            sequence = chunk.sequence
            placed = (sequence, sequence.version)
            if self._placed[row] != placed:
                pages = sequence.num_pages
                self._tables[:, row, :pages] = sequence.tables[:, :pages]
                self._tables[:, row, pages:] = -1
                self._placed[row] = placed

    def _widen(self, pages: int) -> np.ndarray:
        """Tables for rows of so many pages, all of them to be written."""
        width = LEAST_WIDTH
        while width < pages:
            width *= 2
        width = min(width, self._max_pages)
        self._placed: list[tuple[PagedSequence | None, int]] = [NOBODY] * self._max_seqs
        return self._memory[:, : self._max_seqs * width].reshape(-1, self._max_seqs, width)

    def _slots(self, count: int, total: int) -> np.ndarray:
        """Int32 [groups, total]: where each new token goes."""
        rows: np.ndarray = self._numbers[:count]
        positions: np.ndarray = self._past[:count]
        if total > count:
            sizes = np.diff(self._cumulative[: count + 1])
            rows = np.repeat(rows, sizes)
            positions = self._numbers[:total] + np.repeat(positions - self._cumulative[:count], sizes)
        pages, offsets = np.divmod(positions, self._page_size)
        slots: np.ndarray = self._tables[:, rows, pages] * self._page_size
        slots += offsets.astype(np.int32)
        return slots
