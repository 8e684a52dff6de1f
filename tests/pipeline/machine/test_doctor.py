"""kvfold doctor on a machine without a compiler, and with one; on machines with GPUs."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from kvfold.pipeline.machine.doctor.hardware import check_gpu
from kvfold.pipeline.machine.doctor.software import check_compiler


def test_no_compiler_is_a_problem_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(shutil, "which", asked.append)
    finding = check_compiler()
    assert asked == ["g++", "clang++", "c++"]
    assert (finding.part, finding.status) == ("compiler", "problem")
    assert "no g++ or clang++" in finding.detail
    assert "apt-get install g++" in finding.action


def test_a_compiler_is_named_with_its_version() -> None:
    if not (shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")):
        pytest.skip("no compiler here; would show its version line")
    finding = check_compiler()
    assert finding.status == "ok" and any(digit.isdigit() for digit in finding.detail)


@pytest.mark.parametrize(
    ("line", "suits"),
    [
        (
            "NVIDIA H100 80GB HBM3, 81559 MiB, 9.0, 580.95",
            "the targets cuda, tensorrt; not tensorrt-rtx: it runs",
        ),
        ("NVIDIA GeForce RTX 4090, 24564 MiB, 8.9, 580.95", "the targets cuda, tensorrt, tensorrt-rtx"),
        ("Tesla V100, 16160 MiB, 7.0, 580.95", "the target cpu alone; not cuda: it runs on SM 75, 80, "),
    ],
)
def test_a_gpu_is_told_with_the_targets_that_suit_it(
    line: str, suits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    answer = subprocess.CompletedProcess([], 0, f"{line}\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: answer)
    finding = check_gpu()
    assert finding.status == "ok" and finding.detail.startswith(f"{line}: suits {suits}")


def test_a_gpu_that_does_not_tell_its_version_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    answer = subprocess.CompletedProcess([], 0, "Some GPU, 10 MiB, [N/A], 470.1\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: answer)
    assert check_gpu().detail == "Some GPU, 10 MiB, [N/A], 470.1"
