"""VirtualMemory: addresses of a GPU that get memory, and lose it, piece by piece.

The driver's calls are those of its section "Virtual Memory Management".
"""

from __future__ import annotations

from kvfold.plugins.contract.errors import TargetError
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.driver_calls import ORDINAL


class VirtualMemory:
    """Ranges of addresses on one device, given back with all that is mapped when the device is closed."""

    def __init__(self, device: Device, unit: int) -> None:
        """Ask the driver what it can do.

        Args:
            device: whose context is current.
            unit: bytes that every piece is a multiple of.

        Raises:
            TargetError: the GPU cannot, or gives memory by other bytes.
        """
        self._device = device
        self._mapped: dict[int, int] = {}
        if not device.manages_addresses:
            raise TargetError(
                f"the GPU {device.name} has no virtual memory management under this driver, which the KV "
                "cache needs; install a newer driver, or run another target of the bundle (cpu)"
            )
        driver = device.driver
        self._properties = driver.CUmemAllocationProp()
        self._properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._properties.location.id = ORDINAL
        self._access = driver.CUmemAccessDesc()
        self._access.location = self._properties.location
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        minimum = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        granularity = int(device.call("cuMemGetAllocationGranularity", self._properties, minimum))
        if unit % granularity:
            raise TargetError(
                f"the GPU {device.name} gives memory by {granularity} bytes, kvfold asks for multiples of "
                f"{unit}; report it, and run another target of the bundle (cpu)"
            )

    def reserve(self, size: int) -> int:
        """Address of `size` bytes without memory, which stay reserved until the device is closed."""
        address = int(self._device.call("cuMemAddressReserve", size, 0, 0, 0))
        self._device.at_close(self._free, address, size)
        return address

    def map(self, address: int, size: int) -> None:
        """Put memory behind reserved addresses that have none; it is zero once the stream is waited for.

        Raises:
            CapacityError: the GPU has not so much memory left.
            TargetError: the driver failed; nothing is mapped then.
        """
        handle = self._device.call("cuMemCreate", size, self._properties, 0)
        try:
            self._device.call("cuMemMap", address, size, 0, handle, 0)
        finally:
            self._device.call("cuMemRelease", handle)  # the mapping alone keeps the memory
        self._mapped[address] = size
        try:
            self._device.call("cuMemSetAccess", address, size, [self._access], 1)
            self._device.call("cuMemsetD8Async", address, 0, size, self._device.stream)
        except BaseException:
            self.unmap(address)
            raise

    def unmap(self, address: int) -> None:
        """Take the memory from behind an address that `map` was given; nothing may still use it."""
        self._device.call("cuMemUnmap", address, self._mapped.pop(address))

    def _free(self, address: int, size: int) -> None:
        for piece in [piece for piece in self._mapped if address <= piece < address + size]:
            self.unmap(piece)
        self._device.call("cuMemAddressFree", address, size)
