"""Device: the few calls of the CUDA driver that an engine needs, on one GPU and one stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from traceback import clear_frames
from typing import Any, Self

import numpy as np

from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.engine.cuda.driver_calls import (
    architecture_of,
    call_driver,
    first_gpu,
    load_driver,
    name_of,
)


class Device:
    """The first visible GPU, its primary context and one stream; frees all it gave out when closed.

    Work goes onto the stream in order and is done after `synchronize`. The primary context is the one that
    TensorRT and ONNX Runtime use too. `CUDA_VISIBLE_DEVICES` chooses the GPU.

    Attributes:
        driver: its functions and constants; `call` is how to call them.
        name, architecture: of the GPU; the latter is 10 * major + minor.
        manages_addresses: whether memory can be put behind addresses that were reserved.
        stream: handle of the stream.
    """

    def __init__(self, driver: Any) -> None:
        """Open the GPU.

        Args:
            driver: `cuda.bindings.driver`.

        Raises:
            TargetError: there is no driver or no GPU, or the driver refuses it.
        """
        self.driver = driver
        with ExitStack() as opened:
            handle = first_gpu(driver)
            self.name = name_of(driver, handle)
            self.architecture = architecture_of(driver, handle)
            manages = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
            self.manages_addresses = bool(self.call("cuDeviceGetAttribute", manages, handle))
            self._context = self.call("cuDevicePrimaryCtxRetain", handle)
            opened.callback(self.call, "cuDevicePrimaryCtxRelease", handle)
            self.activate()
            stream = self.call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
            opened.callback(self.call, "cuStreamDestroy", stream)
            self.stream = int(stream)
            self._release = opened.pop_all()

    @classmethod
    def open(cls) -> Device:
        """The first visible GPU, through cuda-python.

        Raises:
            TargetError: cuda-python, the driver or a GPU is missing.
        """
        return cls(load_driver())

    def activate(self) -> None:
        """Make the context current in the calling thread, which need not be the one that opened it."""
        self.call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Memory that nobody holds now."""
        free, _ = self.call("cuMemGetInfo")
        return int(free)

    def allocate(self, size: int) -> int:
        """Address of `size` zeroed bytes of device memory, aligned to 256."""
        size = max(size, 1)  # the driver refuses nothing
        address = int(self.call("cuMemAlloc", size))
        self.at_close(self.call, "cuMemFree", address)
        self.call("cuMemsetD8Async", address, 0, size, self.stream)
        return address

    def allocate_pinned(self, size: int) -> np.ndarray:
        """`size` bytes of page-locked host memory, uint8, which alone copies asynchronously.

        The bytes are gone once the device is closed.
        """
        address = int(self.call("cuMemAllocHost", size))
        self.at_close(self.call, "cuMemFreeHost", address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def upload(self, address: int, host: np.ndarray) -> None:
        """Put a copy of pinned memory to the device on the stream."""
        self.call("cuMemcpyHtoDAsync", address, host.ctypes.data, host.nbytes, self.stream)

    def download(self, host: np.ndarray, address: int) -> None:
        """Put a copy from the device into pinned memory on the stream."""
        self.call("cuMemcpyDtoHAsync", host.ctypes.data, address, host.nbytes, self.stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Put a copy from one place of the device to another on the stream."""
        self.call("cuMemcpyDtoDAsync", target, source, size, self.stream)

    def new_event(self) -> Any:
        """A mark for the stream; one that was never recorded is reached."""
        event = self.call("cuEventCreate", self.driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self.at_close(self.call, "cuEventDestroy", event)
        return event

    def record(self, event: Any) -> None:
        """Put a mark on the stream, in place of where it was."""
        self.call("cuEventRecord", event, self.stream)

    def reach(self, event: Any) -> None:
        """Wait for the stream up to a mark; an error of the work before appears here."""
        self.call("cuEventSynchronize", event)

    def synchronize(self) -> None:
        """Wait for the stream; an error of the work before appears here."""
        self.call("cuStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """What `enqueue` puts on the stream, as a graph for `launch`; nothing of it runs now.

        Other threads go on as they like, so the mode is thread-local.
        """
        mode = self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
        except BaseException:
            self.driver.cuStreamEndCapture(self.stream)  # fails too; the first error is the one to see
            raise
        captured = self.call("cuStreamEndCapture", self.stream)
        try:
            graph = self.call("cuGraphInstantiate", captured, 0)
        finally:
            self.call("cuGraphDestroy", captured)
        self.at_close(self.call, "cuGraphExecDestroy", graph)
        return graph

    def load_kernel(self, code: bytes, symbol: str) -> Any:
        """A kernel of a cubin, for `launch_kernel`; it stays loaded until the device is closed."""
        module = self.call("cuModuleLoadData", code)
        self.at_close(self.call, "cuModuleUnload", module)
        return self.call("cuModuleGetFunction", module, symbol.encode())

    def launch_kernel(
        self, kernel: Any, grid: tuple[int, int, int], threads: int, shared_bytes: int, parameters: int
    ) -> None:
        """Put a kernel on the stream; `parameters`: address of an array of pointers to its arguments."""
        self.call("cuLaunchKernel", kernel, *grid, threads, 1, 1, shared_bytes, self.stream, parameters, 0)

    def launch(self, graph: Any) -> None:
        """Put a captured graph on the stream."""
        self.call("cuGraphLaunch", graph, self.stream)

    def close(self) -> None:
        """Free graphs, memory and stream, the last made first. To be called once, when the stream is idle."""
        self.activate()
        self._release.close()

    @contextmanager
    def loading(self) -> Iterator[Self]:
        """While an engine is loaded onto it: where that fails, what was loaded goes, then the device closes.

        What works on the stream must not outlive it. The error's traceback would keep it alive, so the frames
        of functions that were called meanwhile are emptied.
        """
        try:
            yield self
        except BaseException as error:
            last = self._release.pop_all()  # whatever goes with the frames may close the device
            cause: BaseException | None = error
            while cause is not None:
                clear_frames(cause.__traceback__)
                cause = cause.__cause__
            with suppress(KvfoldError):  # a lost GPU refuses this too; the first error is the one to see
                self.activate()
            with suppress(KvfoldError):
                last.close()
            raise

    def at_close(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function when the device is closed, before those that were given earlier."""
        self._release.callback(function, *arguments)

    def call(self, function: str, *arguments: Any) -> Any:
        """See `call_driver`."""
        return call_driver(self.driver, function, *arguments)
