"""The plugin at run time, from the fields in a plan down to what the CUDA driver is handed.

TensorRT needs a GPU to run a plan, so `cpp_host.cc` does what it does then, and libcuda is a stub.
That a GPU runs the kernels is for `make gpu-check`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvfold.plugins.cuda.calls import Launch
from kvfold.plugins.cuda.cuda_library import library_path
from kvfold.plugins.cuda.kernel_library import OPENED_FILE, KernelLibrary
from kvfold.plugins.tensorrt.attributes import Node
from tests.plugins.cuda.cpp.cpp_request import Request, launches_of, tensors_of
from tests.plugins.tensorrt.attention_models import CONSUMER, DONOR, PRODUCER, SPEC


class Runner:
    """Hands requests to the plugin."""

    def __init__(self, host: Path, kernels: Path, libcuda: Path, folder: Path) -> None:
        self.host, self.kernels, self.libcuda, self.log = host, kernels, libcuda, folder / "log"

    def run(self, request: Request, fail: str = "") -> tuple[list[str], list[str]]:
        """What the host printed, and what the driver was asked to do."""
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(self.libcuda),
            "STUB_CUDA_LOG": str(self.log),
            "STUB_CUDA_ARCHITECTURE": str(request.architecture),
            "STUB_CUDA_FAIL": fail,
            "KVFOLD_KERNELS": str(self.kernels / OPENED_FILE),
        }
        command, text = [str(self.host), str(library_path())], str(request)
        process = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout.splitlines(), self.log.read_text().splitlines() if self.log.exists() else []

    def refusal(self, request: Request, fail: str = "") -> str:
        """What was logged of a request that launches nothing."""
        printed, calls = self.run(request, fail)
        assert "enqueue: 0" not in printed
        assert not any(call.startswith("launch") for call in calls)
        lines = {line for line in printed if line.startswith("logged")}
        assert len(lines) == 1
        error = lines.pop()
        prefix = "logged 1 kvfold: attention node layers.3: "
        assert error.startswith(prefix)
        return error.removeprefix(prefix)


@pytest.fixture
def plugin(host: Path, cpp_kernels: Path, libcuda: Path, tmp_path: Path) -> Runner:
    return Runner(host, cpp_kernels, libcuda, tmp_path)


def request_of(sizes: tuple[int, int, int] = (5, 5, 12), node: Node = PRODUCER) -> Request:
    """A call of so many tokens, sequences and table columns on SM 86; caches are where their inputs are."""
    shape = (*sizes, SPEC.page_size, SPEC.head_size)
    tensors = tensors_of(node.attributes, node.inputs, shape, ("float16", "int8"))
    inputs = [(index + 1) << 36 for index in range(len(node.inputs))]
    caches = [inputs[node.aliased_input(index)] for index in range(1, len(node.outputs))]
    return Request(node.values(), tensors, [*inputs, 1 << 44, *caches], architecture=86)


def launched(launch: Launch, stream: int) -> str:
    """The line that the stub writes of a launch."""
    kernel = launch.kernel
    numbers = [*launch.grid, 32 * kernel.num_warps, 1, 1, kernel.shared_bytes, stream, 0]
    values = [f"{np.float32(value):.9g}" if kind == "float32" else value for kind, value in launch.arguments]
    values += [0, 0]  # Triton's scratch
    return f"launch {kernel.symbol} {' '.join(map(str, numbers))} : {' '.join(map(str, values))}"


@pytest.mark.parametrize(
    ("sizes", "node"),
    [((5, 5, 12), PRODUCER), ((40, 3, 12), PRODUCER), ((5, 5, 9), CONSUMER), ((40, 3, 9), CONSUMER)],
)
def test_a_call_reaches_the_driver_as_python_resolves_it(
    plugin: Runner, cpp_kernels: Path, sizes: tuple[int, int, int], node: Node
) -> None:
    request = request_of(sizes, node)
    printed, calls = plugin.run(request)
    assert printed.count("enqueue: 0") == 2
    launches = launches_of(request, KernelLibrary.load(cpp_kernels))
    expected = [launched(each, request.stream) for each in launches]
    assert [call for call in calls if call.startswith("launch")] == expected * 2


def test_every_kernel_is_loaded_once_and_before_anything_is_launched(
    plugin: Runner, cpp_kernels: Path
) -> None:
    """Prefill's too, which this call does not launch: a graph may be captured at the first launch."""
    _, calls = plugin.run(request_of())
    actions = [call.split()[0] for call in calls]
    assert "load" not in actions[actions.index("launch") :]
    # Those of the nearest earlier architecture.
    kernels = [each for each in KernelLibrary.load(cpp_kernels).kernels if each.architecture == 80]
    assert [call for call in calls if call.startswith("load")] == [f"load {each.file}" for each in kernels]
    # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES is 8.
    big = [f"attribute {each.symbol} 8 60000" for each in kernels if each.shared_bytes > 49152]
    assert [call for call in calls if call.startswith("attribute")] == big


def field_of(name: str, value: float | str) -> str:
    """The line that the host writes of a field: name, PluginFieldType, length and bytes."""
    if isinstance(value, str):
        return f"field {name} 6 {len(value) + 1} {value.encode().hex()}00"
    if isinstance(value, float):
        return f"field {name} 1 1 {np.float32(value).tobytes().hex()}"
    return f"field {name} 5 1 {np.int32(value).tobytes().hex()}"


@pytest.mark.parametrize("node", [PRODUCER, DONOR, CONSUMER])
def test_a_plan_holds_the_nodes_attributes_and_the_name_of_its_kernels(
    plugin: Runner, cpp_kernels: Path, node: Node
) -> None:
    printed, _ = plugin.run(request_of(node=node))
    assert printed[0] == "creators 1 PagedAttention 1 kvfold"
    values = {**node.values(), "kernels_sha256": KernelLibrary.load(cpp_kernels).sha256}
    assert [line for line in printed if line.startswith("field ")] == list(
        map(field_of, values, values.values())
    )


def test_a_new_context_at_the_address_of_a_destroyed_one_loads_its_own_kernels(
    plugin: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_CUDA_CONTEXTS", "new")
    _, calls = plugin.run(request_of())
    loads = [call for call in calls if call.startswith("load")]
    assert loads[-3:] == loads[-6:-3]
    assert len(set(loads[-3:])) == 3


@pytest.mark.parametrize(("kernels", "named"), [("f" * 64, "ffffffffffff"), ("none", "unknown")])
def test_a_plan_of_kernels_that_are_not_open_is_refused(
    plugin: Runner, cpp_kernels: Path, kernels: str, named: str
) -> None:
    """It fixes the size of the scratch memory for its own, and others would write past its end."""
    own = KernelLibrary.load(cpp_kernels).sha256[:12]
    error = plugin.refusal(replace(request_of(), kernels=kernels))
    assert error.startswith(f"the engine was built with kernels {named}, and open are {own}; open the file")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda content: content[:-1], "is cut off"),
        (lambda content: content[:20], "is cut off"),
        (lambda content: content + b" ", "holds more than its kernels"),
        (lambda content: b"kvfold kernels 2" + content[16:], "is no file of kernels that this version reads"),
        (lambda content: b"", "is no file of kernels that this version reads"),
    ],
)
def test_a_damaged_file_of_kernels_is_refused(
    plugin: Runner, tmp_path: Path, cpp_kernels: Path, damage: Callable[[bytes], bytes], problem: str
) -> None:
    file = tmp_path / OPENED_FILE
    file.write_bytes(damage((cpp_kernels / OPENED_FILE).read_bytes()))
    plugin.kernels = tmp_path
    assert plugin.refusal(request_of()) == f"{file} {problem}; build the engine again with `kvfold build`"


def test_kernels_that_are_not_there_are_named(plugin: Runner, tmp_path: Path) -> None:
    plugin.kernels = tmp_path / "nowhere"
    error = plugin.refusal(request_of())
    assert error.startswith(
        f"{plugin.kernels / OPENED_FILE} cannot be read (No such file or directory); build"
    )


def test_a_build_launches_nothing(plugin: Runner) -> None:
    printed, calls = plugin.run(replace(request_of(), architecture=120))
    assert "enqueue of a build: 0" in printed
    assert calls == []


@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuModuleGetFunction"])
def test_a_driver_that_refuses_a_kernel_is_quoted(plugin: Runner, call: str) -> None:
    error = plugin.refusal(request_of(), fail=call)
    assert error.startswith(f"the CUDA driver's {call} failed (kernel append-float16-int8-")
    meaning = "CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available for execution on the device"
    assert error.endswith(meaning)


def test_a_driver_that_refuses_a_launch_is_quoted(plugin: Runner) -> None:
    printed, calls = plugin.run(request_of(), fail="cuLaunchKernel")
    assert printed.count("enqueue: 1") == 2
    assert sum(call.startswith("launch") for call in calls) == 2  # the first of each enqueue
    assert any(
        "cuLaunchKernel failed (kernel append-" in line and "grid (5, 6, 1)" in line for line in printed
    )


def test_wrong_use_is_logged(plugin: Runner) -> None:
    request = request_of()
    error = plugin.refusal(replace(request, architecture=120))
    assert error.startswith("there is no attention kernel append-")
    assert "for SM 120 (compiled for 80, 89); build the engine with SM 120 among" in error
    assert plugin.refusal(request, fail="context").startswith("attention was called without a CUDA context")
    elsewhere = replace(request, addresses=[*request.addresses[:-1], 1 << 45])
    assert plugin.refusal(elsewhere).startswith("value_cache_out is not where its input is")
    values = {name: value for name, value in request.values.items() if name != "num_heads"}
    assert plugin.refusal(replace(request, values=values)).startswith("attribute num_heads is missing")


def test_without_a_driver_the_library_loads_and_says_so(
    host: Path, cpp_kernels: Path, tmp_path: Path
) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    error = Runner(host, cpp_kernels, tmp_path, tmp_path).refusal(request_of())
    assert error.startswith("the CUDA driver cannot be loaded (")
