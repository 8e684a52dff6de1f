"""A recording stand-in for `cuda.bindings.driver`, over host memory.

Work put on the stream runs when it is waited for, and not before: a result that is read too early, or an
input that is overwritten too early, shows. Copies outside of what was allocated are errors.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from threading import get_ident
from types import SimpleNamespace
from typing import Any

from tests.runtime.engine.tensorrt.virtual_memory_stand_in import RefusedError, StandInAddresses

Work = Callable[[], object]


class Status(IntEnum):
    """The results that tests use."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_DEVICE_UNAVAILABLE = 46
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_ECC_UNCORRECTABLE = 214
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class StandInDriver(StandInAddresses):
    """One GPU.

    Attributes:
        calls: names of the functions called, in order.
        fails: status that a function gives from now on, by name.
        device, pinned: memory by address.
        capturing: work recorded since a capture began; None outside of one.
        stream: work not done yet.
        current: threads that made the context their current one.
        graphs: how many were captured and not destroyed.
        events: the work that each marks, None before it is recorded.
        kernels: what a kernel does, by its symbol: given the address of its parameters, its work.
    """

    def __init__(self, architecture: int = 89, total: int = 1 << 30) -> None:
        super().__init__()
        self.CUresult = Status
        self.CUdevice_attribute = SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
            CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED="manages addresses",
        )
        self.CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
        self.CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
        self.CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_HOST="host", CU_MEMORYTYPE_DEVICE="device")
        self.CUDA_MEMCPY2D = SimpleNamespace
        self.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
        self.architecture = architecture
        self.manages_addresses = 1
        self.total = total
        self.calls: list[str] = []
        self.fails: dict[str, Status] = {}
        self.device: dict[int, ctypes.Array[Any]] = {}
        self.pinned: dict[int, ctypes.Array[Any]] = {}
        self.capturing: list[Work] | None = None
        self.stream: list[Work] = []
        self.current: set[int] = set()
        self.graphs = 0
        self.events: dict[int, Work | None] = {}
        self.kernels: dict[str, Callable[[tuple[int, int, int], int], Work]] = {}

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        """`cuMemAlloc` is `_mem_alloc` here; every call is recorded."""
        if not name.startswith("cu"):
            raise AttributeError(name)
        implementation = getattr(self, "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", name[2:]).lower())

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            failure = self.fails.get(name)
            if (
                name.startswith(("cuMem", "cuStream", "cuGraph", "cuEvent"))
                and get_ident() not in self.current
            ):
                failure = Status.CUDA_ERROR_INVALID_CONTEXT
            if failure:
                return failure, None
            try:
                return (Status.CUDA_SUCCESS, *implementation(*arguments))
            except RefusedError as refusal:
                return Status[str(refusal)], None

        return call

    @property
    def used(self) -> int:
        """Bytes of device memory given out."""
        return sum(map(len, self.device.values())) + self.committed

    def enqueue(self, work: Work) -> None:
        """Put work on the stream, or into the graph that is being captured."""
        (self.stream if self.capturing is None else self.capturing).append(work)

    def check_device(self, address: int, size: int) -> None:
        """Fail unless these bytes of device memory were given out, or are mapped piece by piece."""
        if sum(end - start for start, end in self.pieces(address, size)) < size:
            _check(self.device, address, size)

    def count(self, name: str) -> int:
        """How often a function was called."""
        return self.calls.count(name)

    def _init(self, flags: int) -> tuple[()]:
        return ()

    def _device_get(self, ordinal: int) -> tuple[str]:
        return (f"device {ordinal}",)

    def _device_get_name(self, length: int, device: str) -> tuple[bytes]:
        return (b"Stand-in GPU\0".ljust(length),)  # the binding's buffer begins as spaces

    def _device_get_attribute(self, attribute: str, device: str) -> tuple[int]:
        major, minor = divmod(self.architecture, 10)
        return ({"major": major, "minor": minor, "manages addresses": self.manages_addresses}[attribute],)

    def _device_primary_ctx_retain(self, device: str) -> tuple[str]:
        return ("context",)

    def _device_primary_ctx_release(self, device: str) -> tuple[()]:
        return ()

    def _ctx_set_current(self, context: str) -> tuple[()]:
        self.current.add(get_ident())
        return ()

    def _stream_create(self, flags: int) -> tuple[int]:
        return (77,)

    def _stream_destroy(self, stream: int) -> tuple[()]:
        return ()

    def _stream_synchronize(self, stream: int) -> tuple[()]:
        pending, self.stream = self.stream, []
        for work in pending:
            work()
        return ()

    def _event_create(self, flags: int) -> tuple[int]:
        assert flags == 2, "events that keep time are slower"
        number = 900 + self.calls.count("cuEventCreate")
        self.events[number] = None
        return (number,)

    def _event_destroy(self, event: int) -> tuple[()]:
        del self.events[event]
        return ()

    def _event_record(self, event: int, stream: int) -> tuple[()]:
        self.events[event] = mark = partial(int)  # an object of its own
        self.enqueue(mark)
        return ()

    def _event_synchronize(self, event: int) -> tuple[()]:
        mark = self.events[event]
        while any(work is mark for work in self.stream):
            self.stream.pop(0)()
        return ()

    def _mem_get_info(self) -> tuple[int, int]:
        return self.total - self.used, self.total

    def _mem_alloc(self, size: int) -> tuple[int]:
        assert 0 < size <= self.total - self.used, "the engine checks what is free before it takes it"
        return (_allocate(self.device, size),)

    def _mem_create(self, size: int, properties: Any, flags: int) -> tuple[int]:
        return self._create(self.total - self.used, size, properties, flags)

    def _mem_free(self, address: int) -> tuple[()]:
        del self.device[address]
        return ()

    def _mem_alloc_host(self, size: int) -> tuple[int]:
        return (_allocate(self.pinned, size),)

    def _mem_free_host(self, address: int) -> tuple[()]:
        del self.pinned[address]
        return ()

    def _memset_d8_async(self, address: int, value: int, size: int, stream: int) -> tuple[()]:
        self.check_device(address, size)
        self.enqueue(partial(self.check_device, address, size))  # what is unmapped meanwhile, shows
        self.enqueue(partial(ctypes.memset, address, value, size))
        return ()

    def _memcpy_hto_d_async(self, target: int, source: int, size: int, stream: int) -> tuple[()]:
        return self._copy(target, source, size, self.device, self.pinned)

    def _memcpy_dto_h_async(self, target: int, source: int, size: int, stream: int) -> tuple[()]:
        return self._copy(target, source, size, self.pinned, self.device)

    def _memcpy_dto_d_async(self, target: int, source: int, size: int, stream: int) -> tuple[()]:
        self.check_device(target, size)
        self.check_device(source, size)
        self.enqueue(partial(ctypes.memmove, target, source, size))
        return ()

    def _memcpy2_d_async(self, copy: Any, stream: int) -> tuple[()]:
        on_host = (copy.dstMemoryType == "host", copy.srcMemoryType == "host")
        target = copy.dstHost if on_host[0] else copy.dstDevice
        source = copy.srcHost if on_host[1] else copy.srcDevice
        assert copy.WidthInBytes <= min(copy.srcPitch, copy.dstPitch) and copy.Height > 0
        for row in range(copy.Height):
            to, of = target + row * copy.dstPitch, source + row * copy.srcPitch
            for address, host in ((to, on_host[0]), (of, on_host[1])):
                if not host:
                    self.check_device(address, copy.WidthInBytes)
            self.enqueue(partial(ctypes.memmove, to, of, copy.WidthInBytes))
        return ()

    def _copy(self, target: int, source: int, size: int, to: Any, of: Any) -> tuple[()]:
        _check(to, target, size)
        _check(of, source, size)
        self.enqueue(partial(ctypes.memmove, target, source, size))
        return ()

    def _stream_begin_capture(self, stream: int, mode: int) -> tuple[()]:
        assert self.capturing is None
        self.capturing = []
        return ()

    def _stream_end_capture(self, stream: int) -> tuple[list[Work]]:
        assert self.capturing is not None
        captured, self.capturing = self.capturing, None
        return (captured,)

    def _graph_instantiate(self, captured: list[Work], flags: int) -> tuple[list[Work]]:
        self.graphs += 1
        return (list(captured),)

    def _graph_destroy(self, captured: list[Work]) -> tuple[()]:
        captured.clear()
        return ()

    def _graph_exec_destroy(self, graph: list[Work]) -> tuple[()]:
        self.graphs -= 1
        return ()

    def _module_load_data(self, code: bytes) -> tuple[bytes]:
        return (code,)

    def _module_unload(self, module: bytes) -> tuple[()]:
        return ()

    def _module_get_function(self, module: bytes, symbol: bytes) -> tuple[str]:
        return (symbol.decode(),)

    def _launch_kernel(self, function: str, *given: int) -> tuple[()]:
        (x, y, z, *_, parameters, _) = given
        self.enqueue(self.kernels[function]((x, y, z), parameters))
        return ()

    def _graph_launch(self, graph: list[Work], stream: int) -> tuple[()]:
        self.stream += graph
        return ()


def _allocate(memory: dict[int, ctypes.Array[Any]], size: int) -> int:
    """Aligned to 256 and full of rubbish; the buffer keeps the bytes alive."""
    raw = ctypes.create_string_buffer(size + 256)
    address = -(-ctypes.addressof(raw) // 256) * 256
    ctypes.memset(address, 0xA5, size)
    memory[address] = (ctypes.c_uint8 * size).from_buffer(raw, address - ctypes.addressof(raw))
    return address


def _check(memory: dict[int, ctypes.Array[Any]], address: int, size: int) -> None:
    assert any(
        start <= address and address + size <= start + len(region) for start, region in memory.items()
    ), f"{size} bytes at {address:#x} were not allocated"
