"""The sampling kernels over the stand-in driver: NumPy on the same arguments, by the op's reference."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvfold.plugins.cuda.kernel_library import CompiledKernel, KernelLibrary
from kvfold.plugins.cuda.sampling_launches import SAMPLING_KERNELS, SAMPLING_TYPES, SAMPLING_VARIANTS
from kvfold.plugins.sampling import reference
from kvfold.plugins.sampling.schema import Outcome, SamplingRow, Status
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver, Work

_DTYPES: dict[str, type] = {
    "*fp32": np.float32,
    "*fp64": np.float64,
    "*i32": np.int32,
    "*u32": np.uint32,
    "*i64": np.int64,
}


def write_sampling_kernels(directory: Path, architecture: int = 89) -> None:
    """A folder of kernels as the build leaves it; the cubins hold their names."""
    directory.mkdir()
    kernels = []
    for name in SAMPLING_KERNELS:
        module = importlib.import_module(f"kvfold.plugins.cuda.kernels.{name}")
        code, file = name.encode(), f"{name}.cubin"
        (directory / file).write_bytes(code)
        kernels.append(
            CompiledKernel(
                variant=SAMPLING_VARIANTS[name].name,
                architecture=architecture,
                symbol=name,
                file=file,
                sha256=hashlib.sha256(code).hexdigest(),
                num_warps=4,
                shared_bytes=0,
                registers=32,
                spill_bytes=0,
                arguments=tuple(each for each in getattr(module, name).arg_names if not each.isupper()),
                grid=module.GRID,
            )
        )
    KernelLibrary(triton="0", kernels=tuple(kernels)).save(directory)


def install(driver: StandInDriver, directory: Path) -> None:
    """Let a driver run the kernels of a folder."""
    effects = {"edit": _edit, "penalize": _penalize, "sample": _sample, "feed": _feed}
    for kernel in KernelLibrary.load(directory).kernels:
        driver.kernels[kernel.symbol] = _work(kernel, effects[kernel.symbol])


def _work(kernel: CompiledKernel, effect: Callable[..., None]) -> Callable[[tuple[int, int, int], int], Work]:
    def launched(grid: tuple[int, int, int], parameters: int) -> Work:
        """Values of arguments are read now, what they point to when the kernel runs."""
        pointers = (ctypes.c_void_p * (len(kernel.arguments) + 2)).from_address(parameters)
        values: dict[str, Any] = {}
        for name, pointer in zip(kernel.arguments, pointers, strict=False):
            assert pointer is not None
            kind = ctypes.c_int32 if SAMPLING_TYPES[name] == "i32" else ctypes.c_void_p
            values[name] = kind.from_address(pointer).value or 0
        assert [ctypes.c_void_p.from_address(p or 0).value for p in pointers[-2:]] == [None, None]
        return lambda: effect(_Arguments(values, grid[0]))

    return launched


class _Arguments:
    """Arguments by name: numbers, and arrays at their addresses."""

    def __init__(self, values: dict[str, Any], rows: int) -> None:
        self.values = values
        self.rows = rows
        self.vocab = values.get("vocab", 0)

    def array(self, name: str, *shape: int) -> np.ndarray:
        dtype = np.dtype(_DTYPES[SAMPLING_TYPES[name]])
        if not all(shape):
            return np.empty(shape, dtype)
        size = dtype.itemsize * int(np.prod(shape))
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.values[name]))
        found: np.ndarray = raw.view(dtype).reshape(shape)
        return found

    def row(self, name: str, row: int) -> np.ndarray:
        found: np.ndarray = self.array(name, row + 1, self.vocab)[row]
        return found


def _edit(given: _Arguments) -> None:
    for row in np.flatnonzero(given.array("is_edited", given.rows)).tolist():
        x = given.row("logits", given.array("sources", given.rows)[row]).copy()
        mask = int(given.array("mask_of", given.rows)[row])
        if mask >= 0:
            words = given.array("masks", mask + 1, -(-given.vocab // 32))[mask]
            x = reference.edit(x, SamplingRow(mask=words))
        given.row("edited", row)[:] = x


def _penalize(given: _Arguments) -> None:
    begins, ends = (given.array(name, given.rows) for name in ("entry_begin", "entry_end"))
    for row, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        names = ("entry_ids", "entry_biases", "entry_counts")
        ids, biases, counts = (given.array(name, end)[begin:] for name in names)
        seen = counts >= 0
        penalties = ("repetition_penalty", "frequency_penalty", "presence_penalty")
        told: dict[str, Any] = {name: float(given.array(name, given.rows)[row]) for name in penalties}
        edits = SamplingRow(
            bias_ids=ids, bias_values=biases, seen_ids=ids[seen], seen_counts=counts[seen], **told
        )
        x = given.row("edited", row) if len(ids) else None
        if x is not None:
            x[:] = reference.edit(x, edits)


def _sample(given: _Arguments) -> None:
    for row in range(given.rows):
        logits = given.row("logits", given.array("sources", given.rows)[row])
        outcome = _outcome(given, row, logits)
        given.array("tokens", given.rows)[row] = outcome.token
        given.array("status", given.rows)[row] = outcome.status
        likely = int(given.array("likely", given.rows)[row])
        if outcome.status == Status.SAMPLED and likely >= 0:
            told = reference.score(logits, outcome.token, likely)
            given.array("logprobs", given.rows)[row] = told.logprob
            width = given.values["likely_width"]
            for at, (token, value) in enumerate(told.likely):
                given.array("likely_ids", given.rows, width)[row, at] = token
                given.array("likely_logprobs", given.rows, width)[row, at] = value


def _feed(given: _Arguments) -> None:
    ids = given.array("input_ids", given.values["ids"])
    named = ids < 0
    if named.any():
        tokens = given.array("tokens", int(-ids.min()))
        ids[named] = np.maximum(tokens[-1 - ids[named]], 0)


def _outcome(given: _Arguments, row: int, logits: np.ndarray) -> Outcome:
    if not np.isfinite(logits.max()):
        return Outcome(Status.NOT_FINITE)
    edited = given.array("is_edited", given.rows)[row] != 0
    x = given.row("edited", row) if edited else logits
    if x.max() == -np.inf:
        return Outcome(Status.NOTHING_ALLOWED)
    told = {
        name: given.array(name, given.rows)[row].item()
        for name in ("temperature", "top_k", "top_p", "min_p", "draw")
    }
    return reference.sample(x, SamplingRow(**told))
