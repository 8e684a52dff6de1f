"""Fixtures of the plugins' tests: the C++ plugin as a library, stand-ins for the driver and for TensorRT."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvfold.plugins.cuda.launches import FLOATS, INTEGERS
from tests.plugins.tensorrt.attention_models import SPEC
from tests.plugins.tensorrt.cpp.compilers import CMAKE, COMPILER
from tests.plugins.tensorrt.cpp.tensorrt_headers import fetch_tensorrt_headers
from tests.plugins.tensorrt.fake_kernels import fake_kernels
from tests.root import ROOT

HERE = Path(__file__).parent
PLUGINS = ROOT / "plugins"
SOURCES = PLUGINS / "tensorrt/cpp"
CUDA_TYPES = PLUGINS / "cuda/cpp/cuda_types"


@pytest.fixture(scope="session")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a libcuda that writes down what it is asked to do; see `stub_cuda.cc`."""
    folder = tmp_path_factory.mktemp("libcuda")
    target = folder / "libcuda.so.1"
    run([COMPILER, "-shared", "-fPIC", "-o", str(target), str(HERE / "cpp/stub_cuda.cc")])
    return folder


@pytest.fixture(scope="session")
def headers() -> Path:
    """TensorRT's C++ headers."""
    try:
        return fetch_tensorrt_headers(ROOT / ".cache")
    except OSError as error:
        pytest.skip(f"without TensorRT's headers the C++ plugin was not compiled: {error}")


@pytest.fixture(scope="session")
def cpp_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels whose entry points tell the stub of libcuda the kinds of their parameters."""
    directory = tmp_path_factory.mktemp("kernels")
    library = fake_kernels((SPEC, replace(SPEC, writes=False)), (80, 89), directory)
    told = [
        kernel.model_copy(update={"symbol": f"{kernel.symbol}_{kinds(kernel.arguments)}pp"})
        for kernel in library.kernels
    ]
    library.model_copy(update={"kernels": tuple(told)}).save(directory)
    return directory


@pytest.fixture(scope="session")
def cpp_library(headers: Path, cpp_kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ plugin as CMake builds it, with every warning an error."""
    if CMAKE is None:
        pytest.skip("without cmake the C++ plugin was not compiled")
    folder = tmp_path_factory.mktemp("cmake")
    options = {
        "KVFOLD_KERNELS": cpp_kernels,
        "TENSORRT_ROOT": headers,
        "Python3_EXECUTABLE": sys.executable,
        "CMAKE_CXX_FLAGS": "-Werror",
    }
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    run([CMAKE, "-S", str(SOURCES), "-B", str(folder), *definitions])
    run([CMAKE, "--build", str(folder), "--parallel", "2"])
    return folder / "libkvfold_tensorrt.so"


@pytest.fixture(scope="session")
def host(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands in for TensorRT at run time; see `cpp_host.cc`."""
    target = tmp_path_factory.mktemp("host") / "host"
    includes = [f"-I{PLUGINS}", "-isystem", str(CUDA_TYPES), "-isystem", str(headers)]
    run([COMPILER, "-std=c++17", *includes, str(HERE / "cpp/cpp_host.cc"), "-ldl", "-o", str(target)])
    return target


def kinds(arguments: tuple[str, ...]) -> str:
    """A letter for each parameter: p(ointer), i(nt32), f(loat32)."""
    return "".join("f" if name in FLOATS else "i" if name in INTEGERS else "p" for name in arguments)


def run(command: list[str]) -> None:
    """Run a compiler; what it printed is shown where it fails."""
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
