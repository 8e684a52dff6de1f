"""Finding, loading and registering the compiled library, and the typed errors when that fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cpu import cpu_library as library
from tests.plugins.cpu.conftest import ISAS


def test_registers_and_reports_its_instruction_sets() -> None:
    library.register_ops(onnxruntime.SessionOptions())
    assert library.supported_isas()[0] == "portable"
    assert set(library.supported_isas()) <= set(ISAS), "one that no kernel is tested on"
    assert library.active_isa() in library.supported_isas()


def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(KernelError, match="'sse9' is not supported here; use one of"):
        library.select_isa("sse9")


def test_missing_library_says_how_to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_LIBRARY", replace(library._LIBRARY, path=tmp_path / "libkvfold_cpu.so"))
    with pytest.raises(KernelError, match="was not compiled; install a C\\+\\+17 compiler"):
        library.library_path()
    with pytest.raises(KernelError, match="was not compiled"):
        library.register_ops(onnxruntime.SessionOptions())


def test_library_that_onnxruntime_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "libkvfold_cpu.so"
    damaged.write_bytes(b"not a shared library")
    monkeypatch.setattr(library, "_LIBRARY", replace(library._LIBRARY, path=damaged))
    with pytest.raises(KernelError, match="ONNX Runtime refused the CPU kernel library"):
        library.register_ops(onnxruntime.SessionOptions())
