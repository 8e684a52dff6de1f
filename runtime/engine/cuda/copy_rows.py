"""Copies of many rows at once between host and device, each side with its own distance between rows."""

from __future__ import annotations

from dataclasses import dataclass

from kvfold.runtime.engine.cuda.device import Device


@dataclass(frozen=True)
class Rows:
    """One side of a copy.

    Attributes:
        address: of the first row.
        pitch: bytes from one row to the next.
        on_host: whether the address is the host's.
    """

    address: int
    pitch: int
    on_host: bool


def copy_rows(device: Device, target: Rows, source: Rows, width: int, count: int) -> None:
    """Put a copy of `count` rows of `width` bytes on the stream; raises TargetError.

    The host's memory need not be pinned, but must stay until the stream is waited for.
    """
    kinds = device.driver.CUmemorytype
    copy = device.driver.CUDA_MEMCPY2D()
    copy.srcMemoryType = kinds.CU_MEMORYTYPE_HOST if source.on_host else kinds.CU_MEMORYTYPE_DEVICE
    copy.dstMemoryType = kinds.CU_MEMORYTYPE_HOST if target.on_host else kinds.CU_MEMORYTYPE_DEVICE
    if source.on_host:
        copy.srcHost = source.address
    else:
        copy.srcDevice = source.address
    if target.on_host:
        copy.dstHost = target.address
    else:
        copy.dstDevice = target.address
    copy.srcPitch, copy.dstPitch = source.pitch, target.pitch
    copy.WidthInBytes, copy.Height = width, count
    device.call("cuMemcpy2DAsync", copy, device.stream)
