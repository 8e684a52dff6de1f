"""A GPU made of Triton's interpreter: what a library launches runs here, on memory of the host.

`host_cuda.cc` is the driver that the library opens. It hands each launch to Python, which finds the kernel by
its entry point and runs it on the addresses that it was given. For the interpreter's process only.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kvfold.plugins.cuda.attention_spec import AttentionSpec, Variant, variants_of
from kvfold.plugins.cuda.kernel_library import CompiledKernel, KernelLibrary
from kvfold.plugins.cuda.launches import FLOATS, INTEGERS
from tests.plugins.cuda.interpreter import TORCH_TYPES, Tiles

ARCHITECTURE = 86
_LAUNCHED = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, *[ctypes.c_uint] * 3, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
)
_ACTIVATIONS = ("query", "key", "value", "output", "rotated_query")
_CACHES = ("key_cache", "value_cache")
_TABLES = ("cumulative_sequence_length", "past_seqlens", "block_table", "slot_mapping")


@dataclass(frozen=True)
class Launched:
    """One launch, its arguments by name; a pointer is an address."""

    variant: str
    grid: tuple[int, int, int]
    arguments: dict[str, int | float]


@dataclass
class HostGpu:
    """The GPU of this process.

    Attributes:
        launches: what ran since `clear`.
        failure: the first exception of a kernel, as none can pass through C.
    """

    launches: list[Launched] = field(default_factory=list)
    failure: Exception | None = None
    _kernels: dict[str, tuple[Variant, CompiledKernel, Tiles]] = field(default_factory=dict)
    _callback: Any = None

    def start(self, driver: Path) -> None:
        """Take the place of libcuda, which libraries open by its name."""
        functions = ctypes.CDLL(str(driver), mode=ctypes.RTLD_GLOBAL)
        self._callback = _LAUNCHED(self._launch)
        functions.host_cuda_start(self._callback, ARCHITECTURE)

    def clear(self) -> None:
        """Forget what ran."""
        self.launches.clear()
        self.failure = None

    def kernels(self, specs: Iterable[AttentionSpec], tiles: Tiles, folder: Path) -> KernelLibrary:
        """Write a library of what nodes need, with entry points that this GPU knows, into a folder."""
        kernels = []
        for variant in dict.fromkeys(variant for spec in specs for variant in variants_of(spec)):
            kernel = _kernel(variant, tiles, folder)
            self._kernels[kernel.symbol] = variant, kernel, tiles
            kernels.append(kernel)
        library = KernelLibrary(triton="interpreter", kernels=tuple(kernels))
        library.save(folder)
        return library

    def _launch(self, symbol: bytes, x: int, y: int, z: int, stream: int | None, parameters: Any) -> None:
        try:
            assert stream is None  # ONNX Runtime's CPU provider has none
            variant, kernel, tiles = self._kernels[symbol.decode()]
            values = {name: _read(name, parameters[i]) for i, name in enumerate(kernel.arguments)}
            self.launches.append(Launched(variant.name, (x, y, z), values))
            given = {name: _pointer(name, value, variant) for name, value in values.items()}
            constants = {
                name: value for name, value in tiles.constants.items() if name in _function(variant).arg_names
            }
            _function(variant)[x, y, z](**given, **constants | dict(variant.constants))
        except Exception as error:
            self.failure = self.failure or error


@cache
def host_gpu(driver: Path) -> HostGpu:
    """Started once."""
    gpu = HostGpu()
    gpu.start(driver)
    return gpu


def _kernel(variant: Variant, tiles: Tiles, folder: Path) -> CompiledKernel:
    group = dict(variant.constants).get("GROUP_SIZE", 1)
    splits = {"split_keys": tiles.split_keys}
    constants = {"prefill": {"tokens_per_tile": tiles.rows // group}, "decode": splits, "merge": splits}
    code = f"{variant.name} {tiles}"
    (folder / f"{variant.name}.cubin").write_text(code)
    return CompiledKernel(
        variant=variant.name,
        architecture=ARCHITECTURE,
        symbol=code,
        file=f"{variant.name}.cubin",
        sha256=hashlib.sha256(code.encode()).hexdigest(),
        num_warps=1,
        shared_bytes=0,
        registers=0,
        spill_bytes=0,
        arguments=tuple(name for name in _function(variant).arg_names if not name.isupper()),
        grid=importlib.import_module(f"kvfold.plugins.cuda.kernels.{variant.kernel}").GRID,
        constants=constants.get(variant.kernel, {}),
    )


def _function(variant: Variant) -> Any:
    return getattr(importlib.import_module(f"kvfold.plugins.cuda.kernels.{variant.kernel}"), variant.kernel)


def _read(name: str, parameter: int) -> int | float:
    """A parameter's value, from where the driver finds it."""
    if name in FLOATS:
        return ctypes.c_float.from_address(parameter).value
    return (ctypes.c_int32 if name in INTEGERS else ctypes.c_uint64).from_address(parameter).value


def _pointer(name: str, value: int | float, variant: Variant) -> Any:
    """A number as it is; an address as a tensor that begins there, as the interpreter wants one."""
    if name in FLOATS or name in INTEGERS:
        return value
    dtype = torch.float32
    if name in _ACTIVATIONS:
        dtype = TORCH_TYPES[variant.activation_dtype]
    elif name in _CACHES:
        dtype = torch.int8 if variant.cache_dtype == "int8" else TORCH_TYPES[variant.cache_dtype]
    elif name in _TABLES:
        dtype = torch.int32
    if not value:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer((ctypes.c_char * dtype.itemsize).from_address(int(value)), dtype=dtype)
