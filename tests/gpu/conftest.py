"""What every GPU test shares: the GPU, or a skip that says what the test would have shown; and the report.

`make gpu-check` (`runs/`) runs each file as a process and writes what was compared, with which differences,
on which GPU. A test records a figure with `record_property(name, value)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.runtime.engine.cuda.device import Device
from tests.gpu.runs.find_gpu import GpuFacts, find_gpu
from tests.gpu.runs.results import Row, append_row
from tests.gpu.tiny_bundle import TinyBundle

RecordProperty = Callable[[str, object], None]


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
    """Appends each outcome, with the figures recorded, to the lines of a group of `make gpu-check`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
            if report.skipped and isinstance(report.longrepr, tuple):
                figures = report.longrepr[2].removeprefix("Skipped: ")
            elif report.failed:
                figures += f" {str(report.longrepr).strip().splitlines()[-1]:.300}"
            name = report.nodeid.rpartition("/")[2]
            append_row(self._path, Row(name, report.outcome, figures, report.duration))


def pytest_collection_finish(session: pytest.Session) -> None:
    path: str | None = session.config.getoption("gpu_report")
    if path:
        session.config.pluginmanager.register(ReportWriter(Path(path)))


@pytest.fixture(autouse=True)
def _every_gpu_test_needs_the_gpu(gpu: GpuFacts) -> Iterator[None]:
    yield
