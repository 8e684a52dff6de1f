"""What ONNX Runtime says of memory and of a GPU becomes the errors that the driver's own calls give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from kvfold.plugins.contract.errors import BundleError, CapacityError, KvfoldError, TargetError
from kvfold.plugins.cuda import cuda_library
from kvfold.runtime.engine.onnxruntime_engine import PROVIDERS, Provider, open_session, run_session
from kvfold.runtime.engine.onnxruntime_errors import device_error

RUN = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. "
ARENA = (
    "bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
)
CUDA_CALL = (
    " ; GPU=0 ; hostname=here ; file=/src/cuda_execution_provider.cc ; line=327 ; expr=cudaSetDevice(id);"
)
NO_MEMORY = "the GPU has no memory left: end other programs on it, or lower kv_cache_bytes"
LOST = "the GPU is lost to this process: start it again"

SAID: dict[str, tuple[str, type[KvfoldError], str]] = {
    "the arena": (
        f"{ARENA}Failed to allocate memory for requested buffer of size 8",
        CapacityError,
        NO_MEMORY,
    ),
    "its limit": (
        f"{ARENA}Available memory of 0 is smaller than requested bytes of 16",
        CapacityError,
        NO_MEMORY,
    ),
    "CUDA's memory": (f"CUDA failure 2: out of memory{CUDA_CALL}", CapacityError, NO_MEMORY),
    "cuBLAS' memory": (
        f"CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED{CUDA_CALL}",
        CapacityError,
        NO_MEMORY,
    ),
    "cuDNN's memory": (
        f"CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED{CUDA_CALL}",
        CapacityError,
        NO_MEMORY,
    ),
    "a lost GPU": (
        f"CUDA failure 700: an illegal memory access was encountered{CUDA_CALL}",
        TargetError,
        LOST,
    ),
    "no GPU": (
        f"CUDA failure 100: no CUDA-capable device is detected{CUDA_CALL}",
        TargetError,
        "sees no GPU",
    ),
    "a GPU that ONNX Runtime has no code for": (
        f"CUDA failure 209: no kernel image is available for execution on the device{CUDA_CALL}",
        TargetError,
        "install an onnxruntime-gpu that supports it",
    ),
    "an old driver": (
        f"CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version{CUDA_CALL}",
        TargetError,
        "the driver is too old",
    ),
    "a number of no advice": (
        f"CUDA failure 1: invalid argument{CUDA_CALL}",
        TargetError,
        "`kvfold doctor` shows",
    ),
    "cuBLAS": (
        f"CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED{CUDA_CALL}",
        TargetError,
        "`kvfold doctor` shows",
    ),
    "our op, lost": (
        "PagedAttention: the CUDA driver's cuLaunchKernel failed (kernel decode, grid (1, 1, 1)): "
        "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure",
        TargetError,
        LOST,
    ),
    "our op, no memory for kernels": (
        "PagedAttention: the CUDA driver's cuModuleLoadData failed (kernel append for SM 89): "
        "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        CapacityError,
        NO_MEMORY,
    ),
    "our op's output": (
        f"PagedAttention: ONNX Runtime refused KernelContext_GetOutput: {ARENA}Failed to allocate memory "
        "for requested buffer of size 8",
        CapacityError,
        NO_MEMORY,
    ),
}


NO_HOST_MEMORY: list[Exception] = [
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during loading: std::bad_alloc"),
    RuntimeError(f"{RUN}bad allocation"),
    MemoryError("std::bad_alloc"),
]


class Failing:
    """A session of ONNX Runtime that says so when it runs."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run_with_iobinding(self, *_: object) -> None:
        raise self._error


@pytest.mark.parametrize("what", SAID)
def test_a_step_that_fails_on_the_gpu(what: str) -> None:
    said, kind, action = SAID[what]
    with pytest.raises(kind) as caught:
        run_session(Failing(RuntimeError(RUN + said)), None, PROVIDERS["cuda"])
    assert said.strip(";") in str(caught.value) and action in str(caught.value)
    assert "build" not in str(caught.value)


@pytest.mark.parametrize("what", SAID)
def test_a_session_that_fails_on_the_gpu(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, kind, action = SAID[what]

    def fail(*_: object, **given: object) -> None:
        assert given["enable_fallback"] == 0, "the CPU's complaint would hide the GPU's"
        raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {said}")

    monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDERS["cuda"].name])
    monkeypatch.setattr(ort, "InferenceSession", fail)
    monkeypatch.setattr(cuda_library, "open_kernels", lambda _: None)
    with pytest.raises(kind) as caught:
        open_session(tmp_path / "model.onnx", PROVIDERS["cuda"], stream=77)
    assert said.strip(";") in str(caught.value) and action in str(caught.value)


def test_what_says_nothing_of_a_device_is_a_damaged_engine() -> None:
    said = f"{RUN}MatMul dimension mismatch"
    assert device_error(said, on_gpu=True) is None
    with pytest.raises(BundleError, match="dimension mismatch; the engine is damaged: build it again"):
        run_session(Failing(RuntimeError(said)), None, PROVIDERS["cuda"])


@pytest.mark.parametrize("error", NO_HOST_MEMORY, ids=repr)
@pytest.mark.parametrize("provider", [PROVIDERS["cpu"], PROVIDERS["cuda"]], ids=lambda each: each.memory)
def test_a_host_without_memory_is_no_damaged_engine(
    error: Exception, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ort, "get_available_providers", lambda: [provider.name])
    monkeypatch.setattr(ort, "InferenceSession", fail)
    monkeypatch.setattr(cuda_library, "open_kernels", lambda _: None)
    said = r"bad.alloc\w*; the machine has no memory left: end other programs on it, or lower max_num"
    with pytest.raises(CapacityError, match=said):
        open_session(tmp_path / "model.onnx", provider)
    with pytest.raises(CapacityError, match=said):
        run_session(Failing(error), None, provider)


def test_a_machine_without_memory_is_no_damaged_engine() -> None:
    """The words are those of the ONNX Runtime that is installed."""
    node = helper.make_node("ConstantOfShape", ["shape"], ["filled"])
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [1])
    filled = helper.make_tensor_value_info("filled", TensorProto.FLOAT, ["size"])
    graph = helper.make_graph([node], "large", [shape], [filled])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("shape", np.array([1 << 56]))
    binding.bind_output("filled")
    with pytest.raises(
        CapacityError,
        match=r"requested buffer of size \d+; the machine has no memory left: end other programs on it, or",
    ):
        run_session(session, binding, PROVIDERS["cpu"])
