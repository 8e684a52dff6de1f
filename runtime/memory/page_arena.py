"""PageArena: the pages of all horizon groups, counted by reference, in one budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import numpy as np

from kvfold.runtime.engine.protocol import EngineInfo, PageStore
from kvfold.runtime.memory.group_pages import GroupPages

# What says that pages of a group moved: (group, from, to); the holders change their tables.
Relocate = Callable[[int, np.ndarray, np.ndarray], None]


class PageArena:
    """Pages of an engine's groups; each sequence that maps a page holds it once, the radix tree at most once.

    A page is named by its group and its id there, or by one *key* over all groups (`keys`).
    Laws: a page is free exactly when nobody holds it; it is idle exactly when only the tree holds it, and
    then it can be evicted; the memory of all committed slabs is at most the budget. Any set of pages fits
    whose slabs, each group's rounded up, fit: where holes are in the way, pages move together.

    Attributes:
        budget: bytes of all pages at most.
        page_bytes: of one page of each group.
        busy: pages of each group that a sequence holds.
        idle: pages of each group that the tree alone holds.
        committed_bytes: of memory that pages have now.
        moved_pages: how many were moved so far to close holes.
    """

    def __init__(self, info: EngineInfo, store: PageStore, relocate: Relocate) -> None:
        """All pages free, none with memory."""
        plan = info.plan
        self.budget = info.kv_cache_bytes
        self.page_bytes = [group.page_bytes(plan.page_size) for group in plan.groups]
        self._names = [group.name for group in plan.groups]
        counts = [info.num_pages[name] for name in self._names]
        self._slabs = [
            GroupPages(count, info.slab_pages[name]) for count, name in zip(counts, self._names, strict=True)
        ]
        self._slab_bytes = [
            slabs.slab_pages * size for slabs, size in zip(self._slabs, self.page_bytes, strict=True)
        ]
        self._limits = counts
        self._firsts = np.array([0, *accumulate(counts)][:-1], np.int64)[:, None]
        self._group_of = np.repeat(np.arange(len(counts)), counts)
        self._holders = np.zeros(sum(counts), np.int32)
        self._cached = np.zeros(sum(counts), np.bool_)
        self._store = store
        self._relocate = relocate
        self.busy = [0] * len(counts)
        self.idle = [0] * len(counts)
        self.committed_bytes = 0
        self.moved_pages = 0

    # What there is

    @property
    def num_groups(self) -> int:
        """Horizon groups."""
        return len(self._names)

    @property
    def num_pages(self) -> int:
        """Keys of pages: as many as all groups have addresses."""
        return len(self._holders)

    def keys_of(self, group: int, pages: np.ndarray) -> np.ndarray:
        """Keys of pages of one group."""
        keys: np.ndarray = pages + self._firsts[group, 0]
        return keys

    def keys(self, pages: np.ndarray) -> np.ndarray:
        """Keys, int64 [n], of the pages of a table, int [groups, any]; -1 is none and left out."""
        keys: np.ndarray = (pages + self._firsts)[pages >= 0]
        return keys

    def slab_bytes(self, counts: Sequence[int]) -> int:
        """Bytes of the slabs that hold so many pages of each group."""
        return sum(
            -(-count // slabs.slab_pages) * size
            for count, slabs, size in zip(counts, self._slabs, self._slab_bytes, strict=True)
        )

    def holds(self, counts: Sequence[int]) -> bool:
        """Whether so many pages of each group fit, if they had the arena to themselves."""
        within = all(count <= limit for count, limit in zip(counts, self._limits, strict=True))
        return within and self.slab_bytes(counts) <= self.budget

    def fits(self, counts: Sequence[int], beside_idle: bool) -> bool:
        """Whether so many more pages of each group fit beside those in use, and also beside the idle ones."""
        used = [count + busy for count, busy in zip(counts, self.busy, strict=True)]
        if beside_idle:
            used = [count + idle for count, idle in zip(used, self.idle, strict=True)]
        return self.holds(used)

    def freed_by(self, keys: np.ndarray) -> list[int]:
        """Pages of each group that no sequence would hold any more, were each of these keys released."""
        pages, times = np.unique(keys, return_counts=True)
        return [count for _, count in self._count(pages[self._holders[pages] == times])]

    def is_idle(self, keys: np.ndarray) -> np.ndarray:
        """Which of these pages only the tree holds: bool [n]."""
        idle: np.ndarray = self._holders[keys] == 0
        return idle

    # Sequences

    def allocate(self, counts: Sequence[int]) -> list[list[int]]:
        """Pages for one sequence, so many of each group; the caller has made sure of `fits`.

        Raises:
            CapacityError: the device gave the memory to somebody else; nothing was allocated.
        """
        self._find_memory(counts)
        taken = []
        for group, count in enumerate(counts):
            pages = self._slabs[group].take(count)
            first = int(self._firsts[group, 0])
            for page in pages:
                self._holders[first + page] = 1
            self.busy[group] += count
            taken.append(pages)
        return taken

    def retain(self, keys: np.ndarray) -> None:
        """A sequence holds these pages too; somebody does already."""
        idle = keys[self._holders[keys] == 0]
        assert self._cached[idle].all(), "a free page cannot be shared"
        self._holders[keys] += 1
        for group, count in self._count(idle):
            self.busy[group] += count
            self.idle[group] -= count

    def release(self, keys: np.ndarray) -> None:
        """A sequence holds these pages no longer; those that nobody holds are free."""
        holders = self._holders[keys]
        assert (holders > 0).all(), "a page was released twice"
        self._holders[keys] = holders - 1
        last = keys[holders == 1]
        cached = self._cached[last]
        for group, count in self._count(last):
            self.busy[group] -= count
        for group, count in self._count(last[cached]):
            self.idle[group] += count
        self._free(last[~cached])

    # The tree

    def cache(self, keys: np.ndarray) -> None:
        """The tree holds these pages too; a sequence does already."""
        assert (self._holders[keys] > 0).all() and not self._cached[keys].any(), "a page cannot be cached"
        self._cached[keys] = True

    def uncache(self, keys: np.ndarray) -> int:
        """The tree holds these pages no longer; returns how many that freed."""
        assert self._cached[keys].all(), "a page is not cached"
        self._cached[keys] = False
        idle = keys[self._holders[keys] == 0]
        for group, count in self._count(idle):
            self.idle[group] -= count
        self._free(idle)
        return len(idle)

    # Memory

    def _count(self, keys: np.ndarray) -> Iterable[tuple[int, int]]:
        """(group, how many of the keys are its)."""
        return enumerate(np.bincount(self._group_of[keys], minlength=len(self._names)).tolist())

    def _free(self, keys: np.ndarray) -> None:
        if not len(keys):
            return
        groups = self._group_of[keys]
        pages = keys - self._firsts[groups, 0]
        for group in np.flatnonzero(np.bincount(groups)).tolist():
            self._slabs[group].give(pages[groups == group].tolist())

    def _find_memory(self, counts: Sequence[int]) -> None:
        """Make sure that each group has so many free pages, with memory that others can do without."""
        short = [
            max(0, -((slabs.free - count) // slabs.slab_pages))
            for slabs, count in zip(self._slabs, counts, strict=True)
        ]
        wanted = sum(count * size for count, size in zip(short, self._slab_bytes, strict=True))
        while self.committed_bytes + wanted > self.budget:
            self._shrink(*self._most_spare(counts), self.committed_bytes + wanted - self.budget)
        for group, count in enumerate(short):
            if count:
                self._commit(group, count)

    def _commit(self, group: int, count: int) -> None:
        slabs = self._slabs[group].commit(count)
        try:
            self._store.commit(self._names[group], slabs)
        except Exception:  # an error of the step under way may come up here, too
            self._slabs[group].decommit(count)  # these very ones: the last come goes first
            raise
        self.committed_bytes += count * self._slab_bytes[group]

    def _most_spare(self, counts: Sequence[int]) -> tuple[int, int]:
        """(group, slabs that it can do without): one with empty slabs, else the one with most in holes."""
        best = (False, 0, 0, 0)
        for group, (slabs, count) in enumerate(zip(self._slabs, counts, strict=True)):
            spare = (slabs.free - count) // slabs.slab_pages
            if spare > 0:
                best = max(best, (slabs.empty > 0, spare * self._slab_bytes[group], group, spare))
        assert best[3], "memory is short although all pages fit"
        return best[2], best[3]

    def _shrink(self, group: int, spare: int, wanted: int) -> None:
        """Take memory from a group, `wanted` bytes or what it can spare; its pages move together for that."""
        slabs, size = self._slabs[group], self._slab_bytes[group]
        count = min(spare, -(-wanted // size))
        if slabs.empty < count:
            sources, targets = slabs.clear(count - slabs.empty)
            self._move(group, np.array(sources, np.int64), np.array(targets, np.int64))
        self.committed_bytes -= count * size
        self._store.decommit(self._names[group], slabs.decommit(count))

    def _move(self, group: int, sources: np.ndarray, targets: np.ndarray) -> None:
        first = self._firsts[group, 0]
        for state in (self._holders, self._cached):
            state[first + targets] = state[first + sources]
            state[first + sources] = 0
        self._relocate(group, sources, targets)
        self.moved_pages += len(sources)
        self._store.move(self._names[group], sources, targets)  # last: what fails leaves the counts whole

    def check_integrity(self, cached: Iterable[np.ndarray], mapped: Iterable[np.ndarray]) -> None:
        """Check conservation against all references that exist.

        Args:
            cached: tables of pages that the tree holds.
            mapped: tables of pages that sequences hold.
        """
        holders, in_tree = np.zeros_like(self._holders), np.zeros_like(self._holders)
        for table in cached:
            np.add.at(in_tree, self.keys(table), 1)
        for table in mapped:
            np.add.at(holders, self.keys(table), 1)
        assert (in_tree <= 1).all(), "a page is in the tree twice"
        assert (holders == self._holders).all(), "reference counts differ from the holders"
        assert (in_tree == self._cached).all(), "the tree holds other pages than it cached"
        for group, slabs in enumerate(self._slabs):
            mine = self._group_of == group
            assert self.busy[group] == (holders[mine] > 0).sum()
            assert self.idle[group] == ((holders[mine] == 0) & (in_tree[mine] > 0)).sum()
            slabs.check_integrity(set(np.flatnonzero((holders + in_tree)[mine]).tolist()))
        assert self.committed_bytes == sum(
            slabs.committed * size for slabs, size in zip(self._slabs, self._slab_bytes, strict=True)
        )
        assert self.committed_bytes <= self.budget
