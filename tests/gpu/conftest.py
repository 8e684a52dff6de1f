"""What every GPU test shares: the GPU, or a skip that says what the test would have shown; and the report.

`make gpu-check` runs this folder alone, stops at the first disagreement and writes what was compared,
with which differences, on which GPU. A test records a figure with `record_property(name, value)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pynvml
import pytest

from kvfold.pipeline.machine.gpus import open_nvml
from kvfold.pipeline.machine.targets import TARGETS
from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.engine.cuda.device import Device
from tests.gpu.tiny_bundle import TinyBundle

RecordProperty = Callable[[str, object], None]


@dataclass(frozen=True)
class GpuFacts:
    """The first GPU of this machine: its name, SM version (10 * major + minor) and driver."""

    name: str
    architecture: int
    driver: str


def find_gpu() -> GpuFacts | str:
    """The first GPU, or why there is none."""
    with open_nvml() as no_gpu:
        if no_gpu:
            return no_gpu
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        return GpuFacts(
            pynvml.nvmlDeviceGetName(handle), 10 * major + minor, pynvml.nvmlSystemGetDriverVersion()
        )


@pytest.fixture(scope="session")
def found_gpu() -> GpuFacts | str:
    """Looked for once."""
    return find_gpu()


@pytest.fixture
def gpu(found_gpu: GpuFacts | str, request: pytest.FixtureRequest) -> GpuFacts:
    """The GPU; without one the test skips and its docstring says what it would have shown."""
    if isinstance(found_gpu, str):
        skip(request, found_gpu)
    return found_gpu


def skip(request: pytest.FixtureRequest, reason: str) -> NoReturn:
    """Skip a test with what it would have shown."""
    shows = (request.function.__doc__ or "").strip().splitlines()
    assert shows, "a GPU test says in its docstring what it shows"
    pytest.skip(f"{reason}; would show: {shows[0]}")


@pytest.fixture
def device(gpu: GpuFacts) -> Iterator[Device]:
    """The GPU through the driver, all its memory freed after the test."""
    device = Device.open()
    yield device
    device.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """The tiny recipe; nothing of it is built before a test asks."""
    return TinyBundle(tmp_path_factory.mktemp("tiny"), "tiny")


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def target(gpu: GpuFacts, request: pytest.FixtureRequest) -> str:
    """A TensorRT target that can be built and run on this GPU; else the test skips."""
    name: str = request.param
    why_not = TARGETS[name].why_not_build() or TARGETS[name].why_not_run()
    if why_not is None and name == "tensorrt-rtx":
        why_not = why_not_rtx(gpu.architecture)
    if why_not is not None:
        skip(request, why_not)
    return name


def why_not_rtx(architecture: int) -> str | None:
    """Why TensorRT-RTX builds no plan for an architecture."""
    import tensorrt_rtx

    if hasattr(tensorrt_rtx.ComputeCapability, f"SM{architecture}"):
        return None
    version = tensorrt_rtx.__version__
    return f"TensorRT-RTX {version} does not support SM {architecture}; install kvfold[tensorrt]"


@pytest.fixture
def architectures(gpu: GpuFacts, target: str) -> tuple[int, ...]:
    """What a recipe must name for the target: TensorRT-RTX the GPU, TensorRT nothing."""
    return (gpu.architecture,) if target == "tensorrt-rtx" else ()


class ReportWriter:
    """Collects outcomes and recorded figures, and writes them as Markdown when the run ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
            if report.skipped and isinstance(report.longrepr, tuple):
                figures = report.longrepr[2].removeprefix("Skipped: ")
            name, figures = report.nodeid.rpartition("/")[2], figures.replace("|", r"\|")
            self._rows.append(f"| {name} | {report.outcome} | {figures} | {report.duration:.1f} s |")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        gpu = find_gpu()
        if isinstance(gpu, str):  # a check that compared nothing did not pass
            session.exitstatus = exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        where = gpu if isinstance(gpu, str) else f"{gpu.name}, SM {gpu.architecture}, driver {gpu.driver}"
        lines = [f"# kvfold {VERSION}: GPU check", "", where, "", "| check | outcome | figures | time |"]
        lines += ["|---|---|---|---|", *self._rows, "", f"pytest ended with exit code {int(exitstatus)}."]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n".join(lines) + "\n")


def pytest_collection_finish(session: pytest.Session) -> None:
    path: str | None = session.config.getoption("gpu_report")
    if path:
        session.config.pluginmanager.register(ReportWriter(Path(path)))


@pytest.fixture(autouse=True)
def _every_gpu_test_needs_the_gpu(gpu: GpuFacts) -> Iterator[None]:
    yield
