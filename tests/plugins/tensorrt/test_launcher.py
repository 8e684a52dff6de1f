"""The launcher through NVIDIA's own bindings, down to the bytes that libcuda is handed.

libcuda is a stub that writes down its calls: that a GPU runs them is for `make gpu-check`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvfold.plugins.cuda.calls import resolve
from tests.plugins.tensorrt.attention_models import SPEC
from tests.plugins.tensorrt.fake_kernels import fake_kernels
from tests.plugins.tensorrt.launch_worker import BUFFERS, DECODE, STREAM, WORKSPACE
from tests.root import ROOT

pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed; it would launch through it")

LETTERS = {"pointer": "p", "int32": "i", "float32": "f"}


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """Kernels for SM 80 whose entry points tell the stub the kinds of their parameters."""
    directory = tmp_path / "kernels"
    directory.mkdir()
    library = fake_kernels((SPEC,), (80,), directory)
    launches = resolve(library, 80, SPEC, DECODE, BUFFERS, WORKSPACE)
    kinds = {each.kernel.file: "".join(LETTERS[kind] for kind, _ in each.arguments) for each in launches}
    told = [
        kernel.model_copy(update={"symbol": f"{kernel.symbol}_{kinds.get(kernel.file, '')}pp"})
        for kernel in library.kernels
    ]
    library.model_copy(update={"kernels": tuple(told)}).save(directory)
    return directory


def launch(
    libcuda: Path, kernels: Path, fail: str = "", architecture: int = 86, options: tuple[str, ...] = ()
) -> tuple[str, list[str]]:
    """What the worker printed, and what the driver was asked to do."""
    log = kernels / "log"
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(libcuda),
        "STUB_CUDA_LOG": str(log),
        "STUB_CUDA_ARCHITECTURE": str(architecture),
        "STUB_CUDA_FAIL": fail,
    }
    command = [sys.executable, "-m", "tests.plugins.tensorrt.launch_worker", str(kernels), *options]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return process.stdout.strip(), log.read_text().splitlines() if log.exists() else []


def test_each_cubin_is_loaded_once_and_launched_with_its_values(libcuda: Path, kernels: Path) -> None:
    printed, calls = launch(libcuda, kernels)
    assert printed == "False"  # neither torch nor Triton
    library = fake_kernels((SPEC,), (80,), kernels)  # the same files, with plain entry points
    expected_launches = []
    for each in resolve(library, 80, SPEC, DECODE, BUFFERS, WORKSPACE):
        numbers = [*each.grid, 32 * 4, 1, 1, each.kernel.shared_bytes, STREAM, 0]
        values = [
            f"{np.float32(value):.9g}" if kind == "float32" else str(value) for kind, value in each.arguments
        ]
        values += ["0", "0"]  # Triton's scratch
        expected_launches.append(f"{' '.join(map(str, numbers))} : {' '.join(values)}")
    launches = [call.split(" ", 2)[2] for call in calls if call.startswith("launch")]
    assert launches == expected_launches * 2
    loads = [call.split()[1] for call in calls if call.startswith("load")]
    assert [load.split("-")[0] for load in loads] == ["append", "decode", "merge"]
    assert all(load.endswith(".sm80.cubin") for load in loads)


def test_every_kernel_can_be_loaded_before_anything_is_launched(libcuda: Path, kernels: Path) -> None:
    """Prefill's too, which these calls do not launch: a graph may be captured at the first launch."""
    _, calls = launch(libcuda, kernels, options=("all",))
    actions = [call.split()[0] for call in calls]
    first_launch = actions.index("launch")
    assert actions[:first_launch].count("load") == 4
    assert "load" not in actions[first_launch:]


def test_a_new_context_at_the_address_of_a_destroyed_one_loads_its_own_kernels(
    libcuda: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_CUDA_CONTEXTS", "new")
    _, calls = launch(libcuda, kernels)
    loads = [call for call in calls if call.startswith("load")]
    assert len(loads) == 6
    assert loads[:3] == loads[3:]


def test_shared_memory_beyond_48_kib_is_asked_for(libcuda: Path, kernels: Path) -> None:
    _, calls = launch(libcuda, kernels)
    asked = [call.split() for call in calls if call.startswith("attribute")]
    # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES is 8.
    assert [(name.split("_")[0], *values) for _, name, *values in asked] == [("decode", "8", "60000")]


@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"])
def test_a_driver_that_refuses_is_quoted(libcuda: Path, kernels: Path, call: str) -> None:
    printed, _ = launch(libcuda, kernels, fail=call)
    assert printed.startswith(f"the CUDA driver's {call} failed (")
    assert "append-float16-int8-" in printed
    meaning = "CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available for execution on the device"
    assert printed.endswith(meaning)


def test_without_a_context_there_is_no_gpu_to_launch_on(libcuda: Path, kernels: Path) -> None:
    printed, calls = launch(libcuda, kernels, fail="context")
    assert printed == "attention was called without a CUDA context; TensorRT makes one"
    assert calls == []


def test_a_gpu_without_a_cubin_is_told_so(libcuda: Path, kernels: Path) -> None:
    printed, calls = launch(libcuda, kernels, architecture=90)
    assert "for SM 90 (compiled for 80); build the engine with SM 90 among its architectures" in printed
    assert calls == []
