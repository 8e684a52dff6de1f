"""The one entry for builder and runtime: makes PagedAttention known to a TensorRT library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.cuda_library import library_path, load_functions, open_kernels


def load_plugins(trt: ModuleType, kernels: Path) -> None:
    """Have `trt` load the plugin, and the plugin open an engine's kernels.

    A plan finds its own kernels among all that were opened; a build takes those that were opened last.
    Parse and build, deserialise and execute inside of `surfacing_errors()`.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`, imported.
        kernels: folder of the engine's kernels.

    Raises:
        KernelError: kernels or library cannot be read, or another library has registered the plugin already.
    """
    open_kernels(kernels)
    _load_library(trt)


@cache
def _load_library(trt: ModuleType) -> None:
    """Once in a process: TensorRT refuses a library whose plugin is there already."""
    path = str(library_path())
    if trt.get_plugin_registry().load_library(path) is None:
        raise KernelError(f"{trt.__name__} did not load {path}; its own words stand above")


@contextmanager
def surfacing_errors() -> Iterator[None]:
    """Inside, the first error of a plugin comes out in its own words, from whatever TensorRT made of it.

    TensorRT reports a callback that failed in words of its own, or not at all.

    Raises:
        KernelError: what the callback found.
    """
    take = load_functions().kvfold_take_error
    take()
    try:
        yield
    except Exception as error:
        if (problem := take()) is not None:
            raise KernelError(problem.decode()) from error
        raise
    if (problem := take()) is not None:
        raise KernelError(problem.decode())
