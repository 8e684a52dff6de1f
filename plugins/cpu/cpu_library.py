"""Finds, checks and registers the compiled op library; the only place that knows its file name."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.onnxruntime.op_library import OpLibrary

if TYPE_CHECKING:
    import onnxruntime

_LIBRARY = OpLibrary(Path(__file__).with_name("libkvfold_cpu.so"), "CPU kernel library")


def library_path() -> Path:
    """The compiled library.

    Raises:
        KernelError: it was not compiled.
    """
    return _LIBRARY.find()


def register_ops(options: onnxruntime.SessionOptions) -> None:
    """Make kvfold's ops known to sessions created with `options`.

    Raises:
        KernelError: the library is missing or ONNX Runtime refuses it.
    """
    _LIBRARY.register(options)


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
    functions = _LIBRARY.load()
    for getter in (functions.kvfold_supported_isas, functions.kvfold_active_isa):
        getter.restype, getter.argtypes = ctypes.c_char_p, []
    functions.kvfold_select_isa.restype = ctypes.c_int
    functions.kvfold_select_isa.argtypes = [ctypes.c_char_p]
    return functions
