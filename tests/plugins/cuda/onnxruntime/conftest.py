"""The op compiled for ONNX Runtime's CPU provider, and the driver that it opens."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.plugins.cuda.onnxruntime.onnxruntime_op import Libraries
from tests.root import ROOT

HERE = Path(__file__).parent
PLUGINS = ROOT / "plugins"
COMPILER = os.environ.get("CXX", "g++")


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    """Compiled once."""
    return compile_libraries(tmp_path_factory.getbasetemp() / "host_gpu")


@cache
def compile_libraries(folder: Path) -> Libraries:
    """Everything of the library for GPUs but TensorRT's part and ONNX Runtime's entry point.

    The same folder throughout a session: a process takes one libcuda alone.
    """
    folder.mkdir()
    libraries = Libraries(folder / "libhost_ops.so", folder / "libcuda.so.1")
    sources = [
        *(PLUGINS / "cuda/cpp").rglob("*.cc"),
        PLUGINS / "cuda/onnxruntime/attention_op.cc",
        *(PLUGINS / "onnxruntime").glob("*.cc"),
        HERE / "host_registration.cc",
    ]
    _compile(libraries.driver, [HERE / "host_cuda.cc"], "-Wl,-soname,libcuda.so.1")
    _compile(libraries.op, sources, "-fvisibility=hidden", f"-I{PLUGINS}", "-Wall", "-Wextra", "-Werror")
    return libraries


def _compile(library: Path, sources: list[Path], *flags: str) -> None:
    command = [
        COMPILER,
        "-std=c++17",
        "-shared",
        "-fPIC",
        *flags,
        *map(str, sources),
        "-ldl",
        "-o",
        str(library),
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
