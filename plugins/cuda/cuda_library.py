"""Finds and opens the compiled library for NVIDIA GPUs; the only place that knows its file name."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.kernel_library import OPENED_FILE

_LIBRARY = Path(__file__).with_name("libkvfold_cuda.so")
HOW_TO_COMPILE = (
    "install a C++17 compiler (Debian: apt-get install g++) and run `pip install -e .` "
    "or `python setup.py build_ext --inplace`"
)


def library_path() -> Path:
    """The compiled library.

    Raises:
        KernelError: it was not compiled.
    """
    if not _LIBRARY.is_file():
        raise KernelError(f"the library for GPUs {_LIBRARY} was not compiled; {HOW_TO_COMPILE}")
    return _LIBRARY


def open_kernels(directory: Path) -> None:
    """Have the library read an engine's kernels; its nodes find them by sha256 to the end of the process.

    Nodes that are built from now on use them.

    Args:
        directory: where `kernels.bin` lies.

    Raises:
        KernelError: the library was not compiled, or the file cannot be read.
    """
    problem = load_functions().kvfold_open_kernels(str(directory / OPENED_FILE).encode())
    if problem is not None:
        raise KernelError(problem.decode())


@cache
def load_functions() -> ctypes.CDLL:
    """The library's own C functions; TensorRT and ONNX Runtime, which load it too, share its state."""
    path = library_path()
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"cannot load the library for GPUs {path}: {error}; {HOW_TO_COMPILE}") from error
    functions.kvfold_open_kernels.argtypes = [ctypes.c_char_p]
    functions.kvfold_open_kernels.restype = ctypes.c_char_p
    return functions
