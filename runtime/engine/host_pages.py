"""HostPages: KV pools in this process's memory, which the system gives as pages are written."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from kvfold.plugins.contract.errors import CapacityError
from kvfold.runtime.engine.kv_pools import KvPool, kv_pools
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.engine.slabs import runs


@dataclass(frozen=True)
class _HostPool:
    """A pool's mapping; its pages as rows, uint8 [pages, page_bytes]; their place in a row of a buffer."""

    memory: mmap.mmap
    rows: np.ndarray
    columns: slice


class HostPages:
    """The page store of an engine on the CPU.

    Each pool is an anonymous mapping as large as its addresses. Untouched memory costs nothing and reads as
    zeros, so a commit is only noted. Elsewhere than on Linux the system has no call that takes memory back
    and leaves zeros: `decommit` then writes them, and the memory stays with the process.

    Attributes:
        pools: each cache, and the address of its first byte, which stays.
    """

    def __init__(self, info: EngineInfo) -> None:
        """Reserve the addresses.

        Raises:
            CapacityError: the process may not have so many.
        """
        self._slab_pages = info.slab_pages
        self._committed: dict[str, set[int]] = {name: set() for name in info.num_pages}
        self._groups: dict[str, list[_HostPool]] = {name: [] for name in info.num_pages}
        self.pools: list[tuple[KvPool, int]] = []
        for pool in kv_pools(info):
            memory = _reserve(pool.nbytes)
            rows = np.frombuffer(memory, np.uint8, pool.nbytes).reshape(pool.shape[0], pool.page_bytes)
            columns = slice(pool.row_offset, pool.row_offset + pool.page_bytes)
            self._groups[pool.group].append(_HostPool(memory, rows, columns))
            self.pools.append((pool, rows.ctypes.data))

    def commit(self, group: str, slabs: Sequence[int]) -> None:
        """Note that slabs are used: a page gets its memory when it is first written."""
        self._committed[group].update(slabs)

    def decommit(self, group: str, slabs: Sequence[int]) -> None:
        """Give the memory of slabs back to the system."""
        held = sorted(self._committed[group].intersection(slabs))
        self._committed[group].difference_update(held)
        for run in runs(np.asarray(held)):
            first, last = (
                slab * self._slab_pages[group] for slab in (held[run.start], held[run.stop - 1] + 1)
            )
            for pool in self._groups[group]:
                if sys.platform == "linux":
                    size = pool.rows.shape[1]
                    pool.memory.madvise(mmap.MADV_DONTNEED, first * size, (last - first) * size)
                else:
                    pool.rows[first:last] = 0

    def copy_out(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        """Copy pages into the rows of a buffer."""
        for pool in self._groups[group]:
            buffer[:, pool.columns] = pool.rows[pages]

    def copy_in(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        """Copy the rows of a buffer into pages."""
        for pool in self._groups[group]:
            pool.rows[pages] = buffer[:, pool.columns]

    def move(self, group: str, sources: np.ndarray, targets: np.ndarray) -> None:
        """Copy pages over others of their group."""
        for pool in self._groups[group]:
            pool.rows[targets] = pool.rows[sources]


def _reserve(size: int) -> mmap.mmap:
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise CapacityError(
            f"the system refused {size} bytes of addresses for a KV pool: {error}; lower kv_cache_bytes, or "
            "raise what limits addresses (`ulimit -v`, or vm.overcommit_memory where it is 2)"
        ) from error
    if sys.platform == "linux":
        # A huge page would take 2 MiB for the first page written in it, in every pool, and keep what is
        # decommitted inside of it.
        with suppress(OSError):  # a kernel that has none
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
