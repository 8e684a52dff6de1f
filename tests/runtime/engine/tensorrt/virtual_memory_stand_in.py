"""The stand-in driver's virtual memory: addresses over host memory, and what is mapped behind them."""

from __future__ import annotations

import ctypes
import mmap
from types import SimpleNamespace
from typing import Any

GRANULARITY = 2 << 20


class RefusedError(Exception):
    """A call that the driver answers with a status of this name."""


class StandInAddresses:
    """What the driver's section "Virtual Memory Management" promises, and what it forbids as assertions.

    Attributes:
        reserved: memory of the host by address.
        handles: sizes of allocations whose handle is not released.
        mapped: size and handle of each mapping, by address.
        accessible: addresses of mappings that the device may read and write.
    """

    def __init__(self) -> None:
        self.CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED="pinned")
        self.CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE="on a device")
        self.CUmemAccess_flags = SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE="read and write")
        self.CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_MINIMUM="minimum")
        self.CUmemAllocationProp = lambda: SimpleNamespace(location=SimpleNamespace())
        self.CUmemAccessDesc = SimpleNamespace
        self.granularity = GRANULARITY
        self.reserved: dict[int, mmap.mmap] = {}
        self.handles: dict[int, int] = {}
        self.mapped: dict[int, tuple[int, int]] = {}
        self.accessible: set[int] = set()
        self._next_handle = 1

    @property
    def committed(self) -> int:
        """Bytes of memory behind handles and mappings."""
        mapped = {handle: size for size, handle in self.mapped.values()}
        return sum((self.handles | mapped).values())

    def pieces(self, address: int, size: int) -> list[tuple[int, int]]:
        """Which parts of a range may be accessed: start and end of each, growing."""
        found = ((start, start + self.mapped[start][0]) for start in sorted(self.accessible))
        return [
            (max(a, address), min(b, address + size)) for a, b in found if a < address + size and b > address
        ]

    def _mem_get_allocation_granularity(self, properties: Any, option: str) -> tuple[int]:
        self._check_properties(properties)
        assert option == "minimum"
        return (self.granularity,)

    def _mem_address_reserve(self, size: int, alignment: int, hint: int, flags: int) -> tuple[int]:
        assert size > 0 and size % self.granularity == 0 and alignment == hint == flags == 0
        memory = mmap.mmap(-1, size + self.granularity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_uint8.from_buffer(memory))
        address = -(-start // self.granularity) * self.granularity
        self.reserved[address] = memory
        return (address,)

    def _mem_address_free(self, address: int, size: int) -> tuple[()]:
        assert len(self.reserved.pop(address)) == size + self.granularity
        assert not any(address <= start < address + size for start in self.mapped), "still mapped"
        return ()

    def _create(self, free: int, size: int, properties: Any, flags: int) -> tuple[int]:
        self._check_properties(properties)
        assert size > 0 and size % self.granularity == 0 and flags == 0
        if size > free:
            raise RefusedError("CUDA_ERROR_OUT_OF_MEMORY")
        self._next_handle += 1
        self.handles[self._next_handle] = size
        return (self._next_handle,)

    def _mem_release(self, handle: int) -> tuple[()]:
        del self.handles[handle]
        return ()

    def _mem_map(self, address: int, size: int, offset: int, handle: int, flags: int) -> tuple[()]:
        assert address % self.granularity == 0 and offset == flags == 0 and self.handles[handle] == size
        ranges = ((start, start + len(memory) - self.granularity) for start, memory in self.reserved.items())
        assert any(start <= address and address + size <= end for start, end in ranges), "not reserved"
        assert not any(
            start < address + size and address < start + length for start, (length, _) in self.mapped.items()
        ), "mapped already"
        self.mapped[address] = (size, handle)
        ctypes.memset(address, 0xA5, size)
        return ()

    def _mem_set_access(self, address: int, size: int, access: list[Any], count: int) -> tuple[()]:
        assert self.mapped[address][0] == size and count == len(access) == 1
        assert access[0].flags == "read and write"
        assert (access[0].location.type, access[0].location.id) == ("on a device", 0)
        self.accessible.add(address)
        return ()

    def _mem_unmap(self, address: int, size: int) -> tuple[()]:
        assert self.mapped.pop(address)[0] == size, "a part of a mapping"
        self.accessible.discard(address)
        return ()

    def _check_properties(self, properties: Any) -> None:
        assert properties.type == "pinned"
        assert (properties.location.type, properties.location.id) == ("on a device", 0)
