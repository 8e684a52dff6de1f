"""Finding and opening the compiled library for GPUs, and the typed errors when that fails."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda import cuda_library as library
from kvfold.plugins.cuda.kernel_library import KERNELS_FILE, OPENED_FILE, KernelLibrary
from tests.plugins.cuda.fake_kernels import fake_kernels
from tests.plugins.tensorrt.attention_models import SPEC


def test_it_asks_for_nothing_of_nvidias() -> None:
    """The driver is opened when a kernel is first launched, so that engines are built where there is none."""
    needed = subprocess.run(
        ["readelf", "--dynamic", library.library_path()], capture_output=True, text=True, check=True
    ).stdout
    assert "libstdc++" in needed
    assert not any(name in needed for name in ("libcuda", "libcudart", "libnvinfer", "onnxruntime"))


def test_a_library_that_was_not_compiled_says_how_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_LIBRARY", replace(library._LIBRARY, path=tmp_path / "libkvfold_cuda.so"))
    with pytest.raises(KernelError, match="was not compiled; install a C\\+\\+17 compiler"):
        library.library_path()


def test_a_damaged_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "libkvfold_cuda.so"
    damaged.write_bytes(b"not a shared library")
    monkeypatch.setattr(library, "_LIBRARY", replace(library._LIBRARY, path=damaged))
    library.load_functions.cache_clear()
    try:
        with pytest.raises(KernelError, match="cannot load the library for GPUs"):
            library.load_functions()
    finally:
        library.load_functions.cache_clear()


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_a_damaged_file_of_kernels_is_not_opened(tmp_path: Path, damage: bytes) -> None:
    """Of as many bytes or fewer: the driver would be handed what is not code."""
    fake_kernels((SPEC,), (80,), tmp_path)
    library.open_kernels(tmp_path)
    path = tmp_path / OPENED_FILE
    path.write_bytes(path.read_bytes()[: -len(b"x")] + damage)
    with pytest.raises(
        KernelError, match=r"kernels\.bin does not hold the recorded kernels; build the engine"
    ):
        library.open_kernels(tmp_path)


@pytest.mark.parametrize("name", ["num_warps", "shared_bytes", "architecture"])
@pytest.mark.parametrize("number", [-1, 1 << 32])
def test_a_number_that_no_kernel_has_is_refused(tmp_path: Path, name: str, number: int) -> None:
    fake_kernels((SPEC,), (80,), tmp_path)
    path = tmp_path / KERNELS_FILE
    recorded = json.loads(path.read_text())
    recorded["kernels"][0][name] = number
    path.write_text(json.dumps(recorded))
    said = (
        rf"kernels\.json is not valid:\s+kernels\.0\.{name}: .* \(given: {number}\); build the engine again"
    )
    with pytest.raises(KernelError, match=said):
        KernelLibrary.load(tmp_path)
