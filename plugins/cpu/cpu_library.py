"""Finds, checks and registers the compiled op library; the only place that knows its file name."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.plugins.contract.errors import KernelError

if TYPE_CHECKING:
    import onnxruntime

_LIBRARY = Path(__file__).with_name("libkvfold_cpu.so")
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
        raise KernelError(f"the CPU kernel library {_LIBRARY} was not compiled; {HOW_TO_COMPILE}")
    return _LIBRARY


def register_ops(options: onnxruntime.SessionOptions) -> None:
    """Make kvfold's ops known to sessions created with `options`.

    Raises:
        KernelError: the library is missing or ONNX Runtime refuses it.
    """
    path = library_path()
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime raises plain and pybind exceptions alike
        raise KernelError(
            f"ONNX Runtime refused the CPU kernel library {path}: {error}; "
            f"check that onnxruntime is 1.31 or newer, then compile again: {HOW_TO_COMPILE}"
        ) from error


def supported_isas() -> tuple[str, ...]:
    """Instruction sets that this machine and this build have: portable, avx2, avx512vnni; best last."""
    return tuple(load_functions().kvfold_supported_isas().decode().split())


def active_isa() -> str:
    """The instruction set that the kernels use now; the best supported one unless another was selected."""
    name: bytes = load_functions().kvfold_active_isa()
    return name.decode()


def select_isa(name: str) -> None:
    """Force an instruction set for every kernel of this process, so that tests can compare them.

    Raises:
        KernelError: this machine or this build does not have it.
    """
    if not load_functions().kvfold_select_isa(name.encode()):
        raise KernelError(f"instruction set {name!r} is not supported here; use one of {supported_isas()}")


@cache
def load_functions() -> ctypes.CDLL:
    """The library's own C functions; ONNX Runtime's later load shares this mapping and its state."""
    path = library_path()
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"cannot load the CPU kernel library {path}: {error}; {HOW_TO_COMPILE}") from error
    for getter in (functions.kvfold_supported_isas, functions.kvfold_active_isa):
        getter.restype, getter.argtypes = ctypes.c_char_p, []
    functions.kvfold_select_isa.restype = ctypes.c_int
    functions.kvfold_select_isa.argtypes = [ctypes.c_char_p]
    return functions
