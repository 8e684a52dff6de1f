"""Fixtures of the plugin's tests: kernels, stand-ins for the driver and for TensorRT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvfold.plugins.cuda.launches import FLOATS, INTEGERS
from tests.plugins.cuda.cpp.compile_cpp import compile_cpp
from tests.plugins.cuda.fake_kernels import fake_kernels
from tests.plugins.tensorrt.attention_models import SPEC
from tests.plugins.tensorrt.cpp.tensorrt_headers import fetch_tensorrt_headers
from tests.root import ROOT

HERE = Path(__file__).parent
CUDA_TYPES = HERE / "cpp/cuda_types"


@pytest.fixture(scope="session")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a libcuda that writes down what it is asked to do; see `stub_cuda.cc`."""
    folder = tmp_path_factory.mktemp("libcuda")
    compile_cpp(folder / "libcuda.so.1", "-shared", "-fPIC", HERE / "cpp/stub_cuda.cc")
    return folder


@pytest.fixture(scope="session")
def headers() -> Path:
    """TensorRT's C++ headers."""
    try:
        return fetch_tensorrt_headers(ROOT / ".cache")
    except OSError as error:
        pytest.skip(f"without TensorRT's headers the plugin was not called through them: {error}")


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
def host(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands in for TensorRT at run time; see `cpp_host.cc`."""
    includes = ("-isystem", CUDA_TYPES, "-isystem", headers)
    return compile_cpp(tmp_path_factory.mktemp("host") / "host", *includes, HERE / "cpp/cpp_host.cc")


def kinds(arguments: tuple[str, ...]) -> str:
    """A letter for each parameter: p(ointer), i(nt32), f(loat32)."""
    return "".join("f" if name in FLOATS else "i" if name in INTEGERS else "p" for name in arguments)
