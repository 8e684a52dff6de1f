"""A minimal pager for tests that drive a graph directly: page ids are handed out in order."""

from __future__ import annotations

import numpy as np

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.protocol import Engine, GroupTables, StepInputs
from kvfold.runtime.engine.slabs import bytes_of_slabs


def budget_of(files: EngineFiles, num_pages: int) -> int:
    """Bytes of so many pages of each group of an engine."""
    slabs = files.slab_pages
    return bytes_of_slabs(files.plan, dict.fromkeys(slabs, num_pages), slabs)


def commit_first(engine: Engine, num_pages: int) -> None:
    """Give the first pages of each group memory, all zero, and no others."""
    for group, slab in engine.info.slab_pages.items():
        engine.pages.decommit(group, range(engine.info.num_pages[group] // slab))
        engine.pages.commit(group, range(-(-num_pages // slab)))


class Pager:
    """Builds StepInputs for sequences that never give pages back."""

    def __init__(self, plan: FoldPlan, num_pages: int) -> None:
        self.plan = plan
        self.num_pages = num_pages
        self.free = list(range(num_pages))[::-1]
        self.pages: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    def step(self, new_tokens: dict[int, list[int]], *, all_logits: bool = True) -> StepInputs:
        """One step: each sequence id with its new tokens."""
        size = self.plan.page_size
        past = [self.lengths.get(sequence, 0) for sequence in new_tokens]
        slots: list[int] = []
        for sequence, tokens in new_tokens.items():
            start = self.lengths.get(sequence, 0)
            pages = self.pages.setdefault(sequence, [])
            while len(pages) * size < start + len(tokens):
                pages.append(self.free.pop())
            slots += [pages[p // size] * size + p % size for p in range(start, start + len(tokens))]
            self.lengths[sequence] = start + len(tokens)
        width = max(len(self.pages[sequence]) for sequence in new_tokens)
        table = [self.pages[s] + [-1] * (width - len(self.pages[s])) for s in new_tokens]
        ends = np.cumsum([len(tokens) for tokens in new_tokens.values()])
        tables = GroupTables(np.array(table, dtype=np.int32), np.array(slots, dtype=np.int32))
        return StepInputs(
            input_ids=np.array([t for tokens in new_tokens.values() for t in tokens], dtype=np.int64),
            cumulative_sequence_length=np.array([0, *ends], dtype=np.int32),
            past_seqlens=np.array(past, dtype=np.int32),
            logits_indices=np.arange(ends[-1]) if all_logits else ends - 1,
            tables={group.name: tables for group in self.plan.groups},
        )
