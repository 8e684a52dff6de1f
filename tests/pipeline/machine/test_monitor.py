"""`kvfold monitor`: this machine, engines that run, and a GPU that NVML pretends to have."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest
from click.testing import CliRunner
from rich.console import Console

from kvfold.pipeline.commands.use.monitor import command
from kvfold.pipeline.machine import gpus
from kvfold.pipeline.machine.gpus import Gpu, open_nvml
from kvfold.pipeline.machine.monitor_view import monitor_view
from kvfold.runtime import status
from kvfold.runtime.status import EngineStatus, published, read_statuses
from tests.runtime.harness import PLANS, make_llm


@pytest.fixture(autouse=True)
def private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "status_folder", lambda: tmp_path)


def render(no_gpu: str | None, found: list[Gpu], engines: list[EngineStatus]) -> str:
    console = Console(width=160, record=True, file=None)
    with console.capture() as capture:
        console.print(monitor_view(no_gpu, found, engines))
    return capture.get()


def test_a_running_engine_shows_its_pages_and_hit_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "INTERVAL_SECONDS", 0.02)
    llm, _ = make_llm(PLANS["hybrid"])
    prompt = list(range(64))
    llm.generate(prompt)
    llm.generate(prompt)
    with published(llm, "a bundle"):
        deadline = time.monotonic() + 10
        while not (found := read_statuses()):
            assert time.monotonic() < deadline
        assert found[0].metrics == llm.metrics
        text = render("no GPU", [], found)
        held = found[0].metrics.kv_cache_bytes - found[0].metrics.free_bytes + (5 << 30)
        on_gpu = render(None, [Gpu(0, "A GPU", 1, 6 << 30, 9 << 30, 50, None, {os.getpid(): held})], found)
    assert "beside it" not in text
    assert "GPU, beside it" in on_gpu and "5 GiB" in on_gpu, "weights and workspace, apart from the pools"
    assert "a bundle" in text and "global" in text
    assert f"{llm.metrics.cache.hit_tokens / llm.metrics.cache.queried_tokens:.1%}" in text
    assert read_statuses() == []


def test_a_killed_process_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, _ = make_llm(PLANS["global"])
    with published(llm, "killed"):
        while not list(tmp_path.glob("*.json")):
            time.sleep(0.01)
        monkeypatch.setattr(psutil, "pid_exists", lambda pid: False)
        assert read_statuses() == []


def test_a_process_that_tells_other_things_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "1-0.json").write_text(
        '{"pid": 1, "metrics": {"pools": {"global": {"total": 3}}, "cache": {}}}'
    )
    assert read_statuses() == []


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    result = CliRunner().invoke(command, ["--once"])
    assert result.exit_code == 0
    assert "no NVIDIA GPU" in result.output and "memory" in result.output
    assert "no running engine" in result.output


def test_a_gpu_is_read_and_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_power(handle: object) -> None:
        raise pynvml.NVMLError_NotSupported

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: "A GPU",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=3 << 30, total=24 << 30),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=87),
        "nvmlDeviceGetTemperature": lambda handle, sensor: 61,
        "nvmlDeviceGetPowerUsage": no_power,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
            SimpleNamespace(pid=7, usedGpuMemory=2 << 30),
            SimpleNamespace(pid=8, usedGpuMemory=None),
        ],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    with open_nvml() as no_gpu:
        assert no_gpu is None
        found = gpus.read_gpus()
    assert found == [Gpu(0, "A GPU", 87, 3 << 30, 24 << 30, 61, None, {7: 2 << 30})]
    text = render(None, found, [])
    assert "87 %" in text and "61 °C" in text


def test_the_gpu_here_is_read_through_nvml() -> None:
    with open_nvml() as no_gpu:
        if no_gpu:
            pytest.skip(f"{no_gpu}; on a GPU this reads memory, load and temperature through NVML")
        assert all(0 < gpu.used <= gpu.total for gpu in gpus.read_gpus())
