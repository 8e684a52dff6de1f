"""GPU memory and utilisation through NVML, the library behind `nvidia-smi --query-gpu`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pynvml


@dataclass(frozen=True)
class Gpu:
    """One GPU now.

    Attributes:
        index: as in `nvidia-smi`.
        name: its product name.
        utilization: percent of the last sample period in which a kernel ran; None where NVML cannot say.
        used, total: bytes of its memory.
        temperature: degrees Celsius.
        power: watts; None where NVML cannot say.
        processes: bytes of its memory by process id, as far as NVML can say.
    """

    index: int
    name: str
    utilization: int | None
    used: int
    total: int
    temperature: int
    power: float | None
    processes: Mapping[int, int] = field(default_factory=dict)


@contextmanager
def open_nvml() -> Iterator[str | None]:
    """NVML for the block; yields why there is no GPU to look at, or None when there is one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield f"no NVIDIA GPU: {error}"
        return
    try:
        yield None if pynvml.nvmlDeviceGetCount() else "no NVIDIA GPU: the driver lists none"
    finally:
        pynvml.nvmlShutdown()


def read_gpus() -> list[Gpu]:
    """Every GPU; inside `open_nvml` only."""
    return [_read_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]


def _read_gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        name=pynvml.nvmlDeviceGetName(handle),
        utilization=_read_utilization(handle),
        used=memory.used,
        total=memory.total,
        temperature=pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        power=_read_power(handle),
        processes=_read_processes(handle),
    )


def _read_utilization(handle: object) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except pynvml.NVMLError_NotSupported:  # a slice of a GPU has none of its own
        return None


def _read_processes(handle: object) -> dict[int, int]:
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:  # not supported, not permitted, or unknown to an older driver
        return {}
    return {each.pid: each.usedGpuMemory for each in processes if each.usedGpuMemory is not None}


def _read_power(handle: object) -> float | None:
    try:
        return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000
    except pynvml.NVMLError_NotSupported:
        return None
