"""The first GPU of this machine, looked for with what a bare kvfold has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuFacts:
    """The first GPU of this machine: its name, SM version (10 * major + minor) and driver."""

    name: str
    architecture: int
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, SM {self.architecture}, driver {self.driver}"


def find_gpu() -> GpuFacts | str:
    """The first GPU, or why there is none."""
    try:
        import pynvml
    except ImportError:
        return "pynvml cannot be imported; put nvidia-ml-py among the packages"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"no NVIDIA GPU: {error}"
    try:
        if not pynvml.nvmlDeviceGetCount():
            return "no NVIDIA GPU: the driver lists none"
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        name, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
        return GpuFacts(name, 10 * major + minor, driver)
    finally:
        pynvml.nvmlShutdown()
