"""kvfold doctor on a machine without a compiler, and with one."""

from __future__ import annotations

import shutil

import pytest

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
