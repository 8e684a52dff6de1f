"""The arena: pages by holders, and slabs of several groups in one budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvfold.plugins.contract.errors import CapacityError
from kvfold.runtime.memory.page_arena import PageArena, Relocate
from tests.runtime.synthetic_engine import SyntheticEngine, make_plan

PLAN = make_plan((None, 0), (32, 4), (32, 4), (64, 0))
GROUPS = len(PLAN.groups)
SLABS = st.sampled_from([1, 2, 3, 4])


def make_arena(
    pages: int, slab: int, relocate: Relocate = lambda *_: None
) -> tuple[PageArena, SyntheticEngine]:
    engine = SyntheticEngine(PLAN, pages, slab=slab)
    return PageArena(engine.info, engine.pages, relocate), engine


def test_a_page_is_freed_by_its_last_holder_only() -> None:
    arena, _ = make_arena(4, 1)
    ((page,), *_) = arena.allocate([1, 0, 0])
    keys = arena.keys_of(0, np.array([page]))
    arena.cache(keys)
    arena.release(keys)
    assert (arena.busy, arena.idle) == ([0, 0, 0], [1, 0, 0])
    arena.retain(keys)
    assert (arena.busy, arena.idle) == ([1, 0, 0], [0, 0, 0])
    assert arena.uncache(keys) == 0
    arena.release(keys)
    assert (arena.busy, arena.idle) == ([0, 0, 0], [0, 0, 0])
    with pytest.raises(AssertionError, match="released twice"):
        arena.release(keys)
    with pytest.raises(AssertionError, match="a free page cannot be shared"):
        arena.retain(keys)
    with pytest.raises(AssertionError, match="cannot be cached"):
        arena.cache(keys)


def test_memory_that_the_device_refuses_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arena, engine = make_arena(8, 2)
    arena.allocate([3, 1, 0])

    def refuse(group: str, slabs: Sequence[int]) -> None:
        raise CapacityError("out of memory")

    before = list(arena.busy), arena.committed_bytes
    with monkeypatch.context() as patched:
        patched.setattr(engine.pages, "commit", refuse)
        with pytest.raises(CapacityError):
            arena.allocate([4, 4, 4])
    assert (arena.busy, arena.committed_bytes) == before
    arena.allocate([4, 4, 4])
    assert arena.committed_bytes == engine.pages.committed_bytes


@given(slab=SLABS, first=st.lists(st.integers(0, 20), min_size=GROUPS, max_size=GROUPS))
def test_what_is_said_to_fit_fits(slab: int, first: list[int]) -> None:
    arena, engine = make_arena(12, slab)
    if arena.holds(first):
        arena.allocate(first)
        assert arena.committed_bytes == arena.slab_bytes(first) <= engine.info.kv_cache_bytes
    else:
        assert arena.slab_bytes(first) > arena.budget or any(
            count > engine.info.num_pages[group.name] for count, group in zip(first, PLAN.groups, strict=True)
        )


class Holders(RuleBasedStateMachine):
    """Sequences that take and give back pages of any groups; contents tell whether moves were told."""

    @initialize(slab=SLABS, pages=st.integers(4, 14))
    def start(self, slab: int, pages: int) -> None:
        self.arena, engine = make_arena(pages, slab, self.relocate)
        self.store = engine.pages
        self.held: list[list[np.ndarray]] = []
        self.names = 0

    def relocate(self, group: int, sources: np.ndarray, targets: np.ndarray) -> None:
        for tables in self.held:
            for source, target in zip(sources, targets, strict=True):
                tables[group][tables[group] == source] = -2 - target
            moved = tables[group] <= -2
            tables[group][moved] = -2 - tables[group][moved]

    @rule(counts=st.lists(st.integers(0, 9), min_size=GROUPS, max_size=GROUPS))
    def take(self, counts: list[int]) -> None:
        if not self.arena.fits(counts, beside_idle=True):
            return
        tables = [np.array(pages, np.int64) for pages in self.arena.allocate(counts)]
        for group, pages in zip(PLAN.groups, tables, strict=True):
            for bank in group.banks:
                self.store.caches[bank.layer][pages] = len(self.held) + 1
        self.held.append(tables)
        self._rename()

    @precondition(lambda self: bool(getattr(self, "held", [])))
    @rule(which=st.integers(0, 99))
    def give_back(self, which: int) -> None:
        tables = self.held.pop(which % len(self.held))
        for group, pages in enumerate(tables):
            self.arena.release(self.arena.keys_of(group, pages))
        self._rename()

    def _rename(self) -> None:
        """Write into each page who holds it."""
        for owner, tables in enumerate(self.held):
            for group, pages in zip(PLAN.groups, tables, strict=True):
                for bank in group.banks:
                    self.store.check(group.name, pages)
                    self.store.caches[bank.layer][pages] = owner + 1

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "arena"):
            return
        for owner, tables in enumerate(self.held):
            for group, pages in zip(PLAN.groups, tables, strict=True):
                for bank in group.banks:
                    assert (self.store.caches[bank.layer][pages] == owner + 1).all()
        widest = max((len(pages) for tables in self.held for pages in tables), default=0)
        padded = [
            np.array([[*pages, *[-1] * (widest - len(pages))] for pages in tables], np.int64)
            for tables in self.held
        ]
        self.arena.check_integrity([], padded)


TestHolders = Holders.TestCase
