"""Finds and opens the compiled library for NVIDIA GPUs; the only place that knows its file name."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.kernel_library import OPENED_FILE, KernelLibrary
from kvfold.plugins.onnxruntime.op_library import OpLibrary

if TYPE_CHECKING:
    import onnxruntime

_LIBRARY = OpLibrary(Path(__file__).with_name("libkvfold_cuda.so"), "library for GPUs")


def library_path() -> Path:
    """The compiled library.

    Raises:
        KernelError: it was not compiled.
    """
    return _LIBRARY.find()


def open_kernels(directory: Path) -> None:
    """Have the library read an engine's kernels; its nodes find them by sha256 to the end of the process.

    Nodes that are built from now on use them.

    Args:
        directory: where `kernels.bin` lies, and what it was made of.

    Raises:
        KernelError: the library was not compiled, or a file cannot be read or is damaged.
    """
    KernelLibrary.load(directory)
    problem = load_functions().kvfold_open_kernels(str(directory / OPENED_FILE).encode())
    if problem is not None:
        raise KernelError(problem.decode())


def register_ops(options: onnxruntime.SessionOptions) -> None:
    """Make the ops for ONNX Runtime's CUDA provider known to sessions created with `options`.

    Raises:
        KernelError: the library was not compiled, or ONNX Runtime refuses it.
    """
    _LIBRARY.register(options)


@cache
def load_functions() -> ctypes.CDLL:
    """The library's own C functions; TensorRT and ONNX Runtime, which load it too, share its state."""
    functions = _LIBRARY.load()
    functions.kvfold_open_kernels.argtypes = [ctypes.c_char_p]
    functions.kvfold_take_error.argtypes = []
    for function in (functions.kvfold_open_kernels, functions.kvfold_take_error):
        function.restype = ctypes.c_char_p
    return functions
