"""HostPages: KV pools in this process's memory, which the system gives as pages are written."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from kvfold.plugins.contract.errors import CapacityError
from kvfold.runtime.engine.kv_pools import KvPool, kv_pools
from kvfold.runtime.engine.protocol import EngineInfo


@dataclass(frozen=True)
class _Rows:
    """The pages of one pool as opaque rows, and where such a row lies in a row of a buffer."""

    pages: np.ndarray
    columns: slice


class HostPages:
    """The page store of an engine on the CPU.

    Each pool is an anonymous mapping as large as its addresses. Untouched memory costs nothing and reads as
    zeros, so there is nothing to commit. Where the system has no MADV_DONTNEED with Linux's meaning,
    `decommit` only zeroes the memory and keeps it.

    Attributes:
        pools: each cache, and the address of its first byte, which stays.
    """

    def __init__(self, info: EngineInfo) -> None:
        """Reserve the addresses.

        Raises:
            CapacityError: the process may not have so many.
        """
        self._slab_pages = info.slab_pages
        self._maps: dict[str, list[tuple[KvPool, mmap.mmap]]] = {name: [] for name in info.num_pages}
        self._rows: dict[str, list[_Rows]] = {name: [] for name in info.num_pages}
        self.pools: list[tuple[KvPool, int]] = []
        for pool in kv_pools(info):
            memory = _reserve(pool.nbytes)
            start = sum(other.page_bytes for other, _ in self._maps[pool.group])
            rows = np.frombuffer(memory, np.dtype((np.void, pool.page_bytes)), pool.shape[0])
            self._maps[pool.group].append((pool, memory))
            self._rows[pool.group].append(_Rows(rows, slice(start, start + pool.page_bytes)))
            self.pools.append((pool, rows.ctypes.data))

    def commit(self, group: str, slabs: Sequence[int]) -> None:
        """Nothing: a page gets memory when it is first written."""

    def decommit(self, group: str, slabs: Sequence[int]) -> None:
        """Give the memory of slabs back to the system."""
        for first, count in runs(slabs):
            for pool, memory in self._maps[group]:
                slab = self._slab_pages[group] * pool.page_bytes
                memory.madvise(mmap.MADV_DONTNEED, first * slab, count * slab)

    def copy_out(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        """Copy pages into the rows of a buffer."""
        for rows in self._rows[group]:
            buffer[:, rows.columns] = rows.pages[pages].view(np.uint8).reshape(len(pages), -1)

    def copy_in(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        """Copy the rows of a buffer into pages."""
        for rows in self._rows[group]:
            rows.pages[pages] = np.ascontiguousarray(buffer[:, rows.columns]).view(rows.pages.dtype)[:, 0]

    def move(self, group: str, sources: np.ndarray, targets: np.ndarray) -> None:
        """Copy pages over others of their group."""
        for rows in self._rows[group]:
            rows.pages[targets] = rows.pages[sources]


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Different numbers as runs of consecutive ones: (first, count), growing."""
    for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], len(members)


def _reserve(size: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise CapacityError(
            f"the system refused {size} bytes of addresses for a KV pool: {error}; lower kv_cache_bytes, or "
            "raise the limit of the process's address space (`ulimit -v`)"
        ) from error
