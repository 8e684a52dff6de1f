"""Elementwise work as one kernel on a GPU that can compile it, and as it is written anywhere else."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def fused(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function`, compiled at its first call whose first argument lies on a CUDA GPU.

    It should depend on its arguments alone. Where this machine cannot compile it runs as it is written.
    """

    @cache
    def compiled() -> Callable[Arguments, Result]:
        return torch.compile(function, dynamic=True)

    @wraps(function)
    def chosen(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        on_gpu = isinstance(args[0], Tensor) and args[0].is_cuda
        return (compiled() if on_gpu and _can_compile() else function)(*args, **kwargs)

    return chosen


@cache
def _can_compile() -> bool:
    """Whether Triton is there, and the C compiler and Python's headers that it builds its launchers with."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return compiler is not None and headers.is_file() and find_spec("triton") is not None
