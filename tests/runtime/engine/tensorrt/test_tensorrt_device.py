"""Device makes typed errors of the driver's and frees what it took; the stand-ins have real names only."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

from kvfold.plugins.contract.errors import CapacityError, TargetError
from kvfold.runtime.engine.cuda import driver_calls
from kvfold.runtime.engine.cuda.copy_rows import copy_rows
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.driver_errors import ACTIONS, NUMBERS
from kvfold.runtime.engine.cuda.virtual_memory import VirtualMemory
from tests.runtime.engine.tensorrt import tensorrt_stand_in
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver, Status


def test_no_driver_says_what_to_do() -> None:
    class NoDriver(StandInDriver):
        def _init(self, flags: int) -> tuple[()]:
            raise RuntimeError("libcuda was not found.")

    with pytest.raises(TargetError, match=r"no NVIDIA driver: libcuda was not found\. Install it, or run"):
        Device(NoDriver())


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_a_driver_without_a_gpu_is_named_by_its_error(function: str) -> None:
    driver = StandInDriver()
    driver.fails[function] = Status.CUDA_ERROR_NO_DEVICE
    with pytest.raises(TargetError, match=f"{function} failed with CUDA_ERROR_NO_DEVICE"):
        Device(driver)
    assert driver.count("cuDevicePrimaryCtxRelease") == 0


@pytest.mark.parametrize(
    ("function", "status", "action"),
    [
        (
            "cuInit",
            Status.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
            "driver is too old, .*: install NVIDIA's newest",
        ),
        (
            "cuDevicePrimaryCtxRetain",
            Status.CUDA_ERROR_DEVICE_UNAVAILABLE,
            "another process has .*: end it, or",
        ),
        ("cuStreamSynchronize", Status.CUDA_ERROR_ILLEGAL_ADDRESS, "lost to this process: start it again"),
        ("cuStreamSynchronize", Status.CUDA_ERROR_ECC_UNCORRECTABLE, "lost to this process: start it again"),
        ("cuStreamSynchronize", Status.CUDA_ERROR_NO_BINARY_FOR_GPU, "not made for this GPU: build it again"),
        ("cuStreamSynchronize", Status.CUDA_ERROR_INVALID_CONTEXT, "`kvfold doctor` shows"),
    ],
)
def test_an_error_of_the_driver_says_what_to_do(function: str, status: Status, action: str) -> None:
    driver = StandInDriver()
    driver.fails[function] = status
    with pytest.raises(TargetError, match=f"{function} failed with {status.name}; .*{action}"):
        Device(driver).synchronize()


def test_a_driver_that_lacks_a_function_is_too_old() -> None:
    class OldDriver(StandInDriver):
        def _stream_create(self, flags: int) -> tuple[int]:
            raise RuntimeError('Function "cuStreamCreate" not found')

    with pytest.raises(TargetError, match=r"has no cuStreamCreate: .* too old, .*: install NVIDIA's newest"):
        Device(OldDriver())


def test_an_opening_that_fails_late_gives_back_the_context() -> None:
    driver = StandInDriver()
    driver.fails["cuStreamCreate"] = Status.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(CapacityError, match="cuStreamCreate failed with CUDA_ERROR_OUT_OF_MEMORY"):
        Device(driver)
    assert driver.count("cuDevicePrimaryCtxRelease") == 1


def test_it_knows_its_gpu() -> None:
    device = Device(StandInDriver(architecture=120))
    assert (device.name, device.architecture, device.stream) == ("Stand-in GPU", 120, 77)


def test_a_gpu_is_known_without_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = StandInDriver(architecture=90)
    monkeypatch.setattr(driver_calls, "load_driver", lambda: driver)
    assert driver_calls.found_architecture() == 90
    assert set(driver.calls) == {"cuInit", "cuDeviceGet", "cuDeviceGetAttribute"}


def test_bytes_make_the_round_trip_once_the_stream_is_waited_for() -> None:
    device = Device(StandInDriver())
    host, address = device.allocate_pinned(1000), device.allocate(1000)
    device.download(host, address)
    device.synchronize()
    assert (host == 0).all(), "device memory is zeroed"
    host[:] = np.arange(1000) % 251
    device.upload(address, host)
    device.synchronize()
    host[:] = 0
    device.download(host[:300], address)
    assert (host == 0).all(), "not before the stream is waited for"
    device.synchronize()
    assert np.array_equal(host[:300], np.arange(300) % 251) and (host[300:] == 0).all()


def test_nothing_of_a_capture_runs_until_it_is_launched() -> None:
    driver = StandInDriver()
    device = Device(driver)
    ran: list[int] = []
    graph = device.capture(lambda: driver.enqueue(lambda: ran.append(1)))
    device.synchronize()
    assert ran == []
    for _ in range(3):
        device.launch(graph)
    device.synchronize()
    assert ran == [1, 1, 1]


def test_a_capture_that_fails_is_ended_and_its_own_error_comes_out() -> None:
    driver = StandInDriver()
    device = Device(driver)

    def refuse() -> None:
        driver.fails["cuStreamEndCapture"] = Status.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        raise TargetError("refused")

    with pytest.raises(TargetError, match="refused"):
        device.capture(refuse)
    assert driver.calls[-1] == "cuStreamEndCapture"


def test_a_load_that_fails_on_a_lost_gpu_gives_back_what_it_can() -> None:
    driver = StandInDriver()
    device = Device(driver)
    device.allocate(10)
    with pytest.raises(TargetError, match="the first error"), device.loading():
        driver.fails["cuCtxSetCurrent"] = Status.CUDA_ERROR_ILLEGAL_ADDRESS
        raise TargetError("the first error")
    assert not driver.device and driver.calls[-2:] == ["cuStreamDestroy", "cuDevicePrimaryCtxRelease"]


def test_closing_frees_in_reverse_order() -> None:
    driver = StandInDriver()
    device = Device(driver)
    device.allocate(10)
    device.allocate_pinned(10)
    device.capture(lambda: None)
    driver.calls.clear()
    device.close()
    assert driver.calls == [
        "cuCtxSetCurrent",
        "cuGraphExecDestroy",
        "cuMemFreeHost",
        "cuMemFree",
        "cuStreamDestroy",
        "cuDevicePrimaryCtxRelease",
    ]
    assert not driver.device and not driver.pinned and not driver.graphs


def test_the_driver_has_every_name_that_device_uses() -> None:
    driver = pytest.importorskip(
        "cuda.bindings.driver", reason="would show that cuda-python has the names used"
    )
    sources = "".join(inspect.getsource(part) for part in (Device, driver_calls, VirtualMemory, copy_rows))
    used = re.findall(r'"(cu[A-Z]\w+)"|\.(cu[A-Z]\w+)\(|\.(CU\w+)', sources)
    names = {name for match in used for name in match if name}
    enums = [getattr(driver, name) for name in names if name.startswith("CU") and hasattr(driver, name)]
    assert len(names) > 40
    missing = [name for name in names if not any(hasattr(holder, name) for holder in (driver, *enums))]
    assert missing == []
    written = re.findall(r"copy\.(\w+)", inspect.getsource(copy_rows))
    assert len(written) > 9 and all(hasattr(driver.CUDA_MEMCPY2D, name) for name in written)
    properties, access = driver.CUmemAllocationProp(), driver.CUmemAccessDesc()
    assert all(hasattr(properties, name) for name in ("type", "location"))
    assert all(hasattr(access, name) for name in ("flags", "location"))
    assert all(hasattr(properties.location, name) for name in ("type", "id"))
    assert driver.CUresult.CUDA_SUCCESS == Status.CUDA_SUCCESS
    for status in Status:
        assert driver.CUresult(int(status)).name == status.name


def test_errors_have_the_numbers_of_the_driver_and_of_the_runtime_library() -> None:
    driver, runtime = (
        pytest.importorskip(f"cuda.bindings.{name}", reason="would show that the numbers are NVIDIA's")
        for name in ("driver", "runtime")
    )
    by_name_only = {"CUDA_ERROR_NO_BINARY_FOR_GPU"}  # of our kernels; 209 is of a library's
    assert set(NUMBERS.values()) | by_name_only == set(ACTIONS)
    for number, name in NUMBERS.items():
        assert runtime.cudaError_t(number)
        owner = driver.CUresult if hasattr(driver.CUresult, name) else runtime.cudaError_t
        assert int(getattr(owner, name)) == number


def test_tensorrt_rtx_has_every_name_that_its_stand_in_has() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="would show that the library has what its stand-in has")
    pairs = (
        (tensorrt_stand_in.Runtime, trt.Runtime),
        (tensorrt_stand_in.CudaEngine, trt.ICudaEngine),
        (tensorrt_stand_in.Context, trt.IExecutionContext),
        (tensorrt_stand_in.RuntimeConfig, trt.IRuntimeConfig),
    )
    for stand_in, real in pairs:
        public = [name for name in vars(stand_in) if not name.startswith("_")]
        assert public and [name for name in public if not hasattr(real, name)] == []
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE != trt.CudaGraphStrategy.DISABLED
    kinds = trt.DynamicShapesKernelSpecializationStrategy
    assert kinds.EAGER != kinds.NONE
    assert hasattr(trt.ICudaEngine, "device_memory_size_v2") and trt.Logger.WARNING
    for name in ("dynamic_shapes_kernel_specialization_strategy", "cuda_graph_strategy"):
        assert hasattr(trt.IRuntimeConfig, name)
