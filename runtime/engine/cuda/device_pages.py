"""DevicePages: KV pools in a GPU's virtual memory, a slab of which has memory or has none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.engine.cuda.copy_rows import Rows, copy_rows
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.virtual_memory import VirtualMemory
from kvfold.runtime.engine.kv_pools import KvPool, kv_pools
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.engine.slabs import GPU_UNIT, runs


class DevicePages:
    """The page store of an engine on a GPU.

    Attributes:
        pools: each cache, and the address of its first byte, which stays.
    """

    def __init__(self, device: Device, info: EngineInfo) -> None:
        """Reserve the addresses; they and what is committed go with the device.

        Raises:
            TargetError: the GPU or its driver cannot.
        """
        self._device = device
        self._memory = VirtualMemory(device, GPU_UNIT)
        self._slab_pages = info.slab_pages
        self._committed: dict[str, set[int]] = {name: set() for name in info.num_pages}
        self._groups: dict[str, list[tuple[KvPool, int]]] = {name: [] for name in info.num_pages}
        self.pools: list[tuple[KvPool, int]] = []
        for pool in kv_pools(info):
            self.pools.append((pool, self._memory.reserve(pool.nbytes)))
            self._groups[pool.group].append(self.pools[-1])

    def commit(self, group: str, slabs: Sequence[int]) -> None:
        """Put zeroed memory behind slabs.

        Raises:
            CapacityError: the GPU has no more; nothing was committed.
            TargetError: the driver failed; nothing was committed.
        """
        self._device.activate()
        mapped: list[int] = []
        try:
            for address, size in self._pieces(group, slabs):
                self._memory.map(address, size)
                mapped.append(address)
            self._device.synchronize()
        except BaseException:
            with suppress(KvfoldError):
                self._device.synchronize()  # zeros may still be on their way to what is taken back
            for address in mapped:
                self._memory.unmap(address)
            raise
        self._committed[group].update(slabs)

    def decommit(self, group: str, slabs: Sequence[int]) -> None:
        """Give the memory of slabs back to the GPU."""
        self._device.activate()
        self._device.synchronize()  # a step may still be reading it
        held = sorted(self._committed[group].intersection(slabs))
        self._committed[group].difference_update(held)
        for address, _ in self._pieces(group, held):
            self._memory.unmap(address)

    def copy_out(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        """Copy pages into the rows of a buffer."""
        self._copy(group, pages, buffer, out=True)

    def copy_in(self, group: str, pages: np.ndarray, buffer: np.ndarray) -> None:
        """Copy the rows of a buffer into pages."""
        self._copy(group, pages, buffer, out=False)

    def move(self, group: str, sources: np.ndarray, targets: np.ndarray) -> None:
        """Copy pages over others of their group."""
        self._device.activate()
        for run in runs(sources, targets):
            count, source, target = run.stop - run.start, int(sources[run.start]), int(targets[run.start])
            for pool, address in self._groups[group]:
                size = pool.page_bytes
                self._device.copy(address + target * size, address + source * size, count * size)
        self._device.synchronize()

    def _copy(self, group: str, pages: np.ndarray, buffer: np.ndarray, *, out: bool) -> None:
        """A copy for each pool and run of consecutive pages."""
        self._device.activate()
        row_bytes = buffer.shape[1]
        for run in runs(pages):
            count, first = run.stop - run.start, int(pages[run.start])
            for pool, address in self._groups[group]:
                size = pool.page_bytes
                host = Rows(buffer.ctypes.data + run.start * row_bytes + pool.row_offset, row_bytes, True)
                device = Rows(address + first * size, size, False)
                target, source = (host, device) if out else (device, host)
                copy_rows(self._device, target, source, size, count)
        self._device.synchronize()

    def _pieces(self, group: str, slabs: Sequence[int]) -> list[tuple[int, int]]:
        """Address and bytes of each slab in each pool."""
        pages = self._slab_pages[group]
        return [
            (address + slab * pages * pool.page_bytes, pages * pool.page_bytes)
            for slab in slabs
            for pool, address in self._groups[group]
        ]
