"""What every GPU test shares: the GPU, or a skip that says what the test would have shown; and the report.

`make gpu-check` runs this folder alone, stops at the first disagreement and writes what was compared,
with which differences, on which GPU. A test records a figure with `record_property(name, value)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pynvml
import pytest

from pipeline.monitor.gpus import open_nvml
from plugins.version import VERSION


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
        shows = (request.function.__doc__ or "").strip().splitlines()
        assert shows, "a GPU test says in its docstring what it shows"
        pytest.skip(f"{found_gpu}; would show: {shows[0]}")
    return found_gpu


class ReportWriter:
    """Collects outcomes and recorded figures, and writes them as Markdown when the run ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
            name = report.nodeid.rpartition("/")[2]
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
