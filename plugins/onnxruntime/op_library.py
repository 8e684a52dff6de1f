"""OpLibrary: a compiled library of kvfold's ops, found, loaded and made known to ONNX Runtime."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.plugins.contract.errors import KernelError

if TYPE_CHECKING:
    import onnxruntime

HOW_TO_COMPILE = (
    "install a C++17 compiler (Debian: apt-get install g++) and run `pip install -e .` "
    "or `python setup.py build_ext --inplace`"
)


@dataclass(frozen=True)
class OpLibrary:
    """A shared library that setup.py compiles.

    Attributes:
        path: where it is, once it was compiled.
        title: what errors call it.
    """

    path: Path
    title: str

    def find(self) -> Path:
        """The compiled library.

        Raises:
            KernelError: it was not compiled.
        """
        if not self.path.is_file():
            raise KernelError(f"the {self.title} {self.path} was not compiled; {HOW_TO_COMPILE}")
        return self.path

    def load(self) -> ctypes.CDLL:
        """Its C functions; who loads it later shares this mapping and its state.

        Raises:
            KernelError: it was not compiled, or cannot be loaded.
        """
        path = self.find()
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise KernelError(f"cannot load the {self.title} {path}: {error}; {HOW_TO_COMPILE}") from error

    def register(self, options: onnxruntime.SessionOptions) -> None:
        """Make its ops known to sessions created with `options`.

        Raises:
            KernelError: it was not compiled, or ONNX Runtime refuses it.
        """
        path = self.find()
        try:
            options.register_custom_ops_library(str(path))
        except Exception as error:  # onnxruntime raises plain and pybind exceptions alike
            raise KernelError(
                f"ONNX Runtime refused the {self.title} {path}: {error}; "
                f"check that onnxruntime is 1.31 or newer, then compile again: {HOW_TO_COMPILE}"
            ) from error
