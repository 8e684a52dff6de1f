"""The C++ plugin with an engine's kernels inside, running the plan that was built with the Python one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvfold.runtime.engine.engine_config import KERNELS_FOLDER
from tests.gpu.conftest import skip
from tests.gpu.engines import read_in_new_process, tensorrt_engine
from tests.gpu.read_texts import read_texts
from tests.gpu.tiny_bundle import TinyBundle
from tests.plugins.tensorrt.cpp.compilers import CMAKE
from tests.plugins.tensorrt.cpp.tensorrt_headers import fetch_tensorrt_headers
from tests.root import ROOT


@pytest.fixture
def library(
    tiny: TinyBundle,
    target: str,
    architectures: tuple[int, ...],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Path:
    """Built as docs/tensorrt.md says, over the engine's own kernels."""
    if CMAKE is None:
        skip(request, "cmake is not installed")
    try:
        headers = fetch_tensorrt_headers(ROOT / ".cache")
    except OSError as error:
        skip(request, f"TensorRT's headers cannot be fetched: {error}")
    kernels = tiny.build(target, architectures) / KERNELS_FOLDER
    options = {"KVFOLD_KERNELS": kernels, "TENSORRT_ROOT": headers, "Python3_EXECUTABLE": sys.executable}
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    folder = tmp_path / "library"
    run([CMAKE, "-S", str(ROOT / "plugins/tensorrt/cpp"), "-B", str(folder), *definitions])
    run([CMAKE, "--build", str(folder)])
    return folder / "libkvfold_tensorrt.so"


def run(command: list[str]) -> None:
    """What a failing program printed is shown."""
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def test_it_gives_the_bits_of_the_python_plugin(
    tiny: TinyBundle, target: str, architectures: tuple[int, ...], library: Path, tmp_path: Path
) -> None:
    """A process with the C++ library deserialises and runs the plan; its logits are the same, bit for bit."""
    directory = tiny.build(target, architectures)
    with tensorrt_engine(directory, tiny.plan) as engine:
        logits = read_texts(engine, tiny.plan, tiny.texts)
    np.testing.assert_array_equal(read_in_new_process(tiny, directory, tmp_path, library), logits)
