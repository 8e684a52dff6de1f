"""A tiny engine with exact tokens: its pages hold token ids, its logits hash every visible one.

A page that is wrong, stale, freed too early or never written changes the next token or raises, so
equality of tokens proves the paging. All windows and sinks of the plan take part in the hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from kvfold.plugins.contract.fold_plan import Bank, FoldPlan, HorizonGroup, LayerPlan
from kvfold.runtime.engine.host_engine import HostEngine
from kvfold.runtime.engine.protocol import EngineInfo, StepInputs
from kvfold.runtime.engine.slabs import address_pages
from tests.runtime.synthetic_pages import SyntheticPages


def make_plan(*horizons: tuple[int | None, int]) -> FoldPlan:
    """A plan with one layer for each (window, sinks)."""
    return FoldPlan(
        num_attention_heads=1,
        head_dim=2,
        layers=tuple(
            LayerPlan(donor=index, num_key_value_heads=1, sliding_window=window, sink_size=sinks)
            for index, (window, sinks) in enumerate(horizons)
        ),
    )


class SyntheticEngine(HostEngine):
    """Deterministic next tokens from whatever the block tables make visible."""

    def __init__(
        self,
        plan: FoldPlan,
        pages: int | dict[str, int] = 64,
        vocab: int = 97,
        context: int = 512,
        slab: int = 1,
    ) -> None:
        """The budget is that of so many pages of each group, in slabs of `slab` pages."""
        num_pages = pages if isinstance(pages, dict) else {group.name: pages for group in plan.groups}
        budget = sum(num_pages[group.name] * group.page_bytes(plan.page_size) for group in plan.groups)
        slabs = dict.fromkeys(num_pages, slab)
        addresses = address_pages(plan, budget, slabs)
        super().__init__(EngineInfo(plan, budget, addresses, slabs, vocab, context, "synthetic"))
        self.pages = SyntheticPages(self.info)
        self.steps = 0
        self.tokens_computed = 0
        self.largest_batch = 0

    def execute(self, step: StepInputs) -> np.ndarray:
        """Write the new tokens' ids into their slots, then hash what each wanted row sees."""
        total = len(step.input_ids)
        self._check_shapes(step, total)
        self.steps += 1
        self.tokens_computed += total
        self.largest_batch = max(self.largest_batch, len(step.past_seqlens))
        for group in self.info.plan.groups:
            slots = step.tables[group.name].slot_mapping
            assert len(set(slots.tolist())) == total and slots.min() >= 0
            pages, offsets = np.divmod(slots, self.info.plan.page_size)
            self.pages.check(group.name, pages)
            for bank in group.banks:
                self.pages.caches[bank.layer][pages, offsets] = step.input_ids + 1
        rows = np.empty((len(step.logits_indices), self.info.vocab_size), np.float32)
        for row, index in enumerate(step.logits_indices.tolist()):
            rows[row] = self.logits(step, index)
        return rows

    def _check_shapes(self, step: StepInputs, total: int) -> None:
        assert step.input_ids.dtype == np.int64 and step.logits_indices.dtype == np.int64
        assert step.cumulative_sequence_length[0] == 0 and step.cumulative_sequence_length[-1] == total
        sequences = len(step.past_seqlens)
        assert len(step.cumulative_sequence_length) == sequences + 1
        for tables in step.tables.values():
            assert tables.block_table.dtype == np.int32 and tables.slot_mapping.dtype == np.int32
            assert tables.block_table.shape[0] == sequences and tables.block_table.flags.c_contiguous
            assert tables.slot_mapping.shape == (total,)

    def logits(self, step: StepInputs, index: int) -> np.ndarray:
        """What one token sees, hashed."""
        bounds = list(pairwise(step.cumulative_sequence_length.tolist()))
        sequence = next(i for i, (start, end) in enumerate(bounds) if start <= index < end)
        position = int(step.past_seqlens[sequence]) + index - bounds[sequence][0]
        state = np.uint64(position)
        for group in self.info.plan.groups:
            table = step.tables[group.name].block_table[sequence]
            seen = visible_positions(group, position)
            for bank in group.banks:
                state = fold_hash(state, seen, self._read(bank, table, seen))
        return spread(state, self.info.vocab_size)

    def _read(self, bank: Bank, table: np.ndarray, positions: np.ndarray) -> np.ndarray:
        size = self.info.plan.page_size
        pages = table[positions // size]
        if (pages < 0).any():
            raise AssertionError(f"visible position {positions[pages < 0][0]} is not mapped")
        self.pages.check(bank.group, pages)
        tokens: np.ndarray = self.pages.caches[bank.layer][pages, positions % size] - 1
        if (tokens < 0).any():
            raise AssertionError("a visible slot was never written")
        return tokens


def visible_positions(group: HorizonGroup, position: int) -> np.ndarray:
    """What a query sees: all before it, or its window and the sinks."""
    positions = np.arange(position + 1)
    if group.sliding_window is None:
        return positions
    return positions[(position - positions < group.sliding_window) | (positions < group.sink_size)]


def fold_hash(state: np.uint64, positions: np.ndarray, tokens: np.ndarray) -> np.uint64:
    """A hash of which tokens stand where."""
    mixed = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    with np.errstate(over="ignore"):
        total = (mixed * np.uint64(0xBF58476D1CE4E5B9)).sum(dtype=np.uint64)
        return np.uint64((state ^ total) * np.uint64(0x94D049BB133111EB))


def spread(state: np.uint64, vocab: int) -> np.ndarray:
    """Logits in [-4, 4) from a hash, all different in general."""
    mixed = np.arange(1, vocab + 1, dtype=np.uint64) * (state | np.uint64(1))
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 21) - 4).astype(np.float32)


def expected_tokens(plan: FoldPlan, prompt: Sequence[int], count: int, vocab: int = 97) -> list[int]:
    """Greedy tokens straight from the definition, with no pages at all."""
    tokens = list(prompt)
    for _ in range(count):
        position = len(tokens) - 1
        state = np.uint64(position)
        for group in plan.groups:
            seen = visible_positions(group, position)
            for _bank in group.banks:
                state = fold_hash(state, seen, np.asarray(tokens)[seen])
        tokens.append(int(spread(state, vocab).argmax()))
    return tokens[len(prompt) :]
