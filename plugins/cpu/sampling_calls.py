"""Calls the compiled sampling, with Python's lock dropped; the other side is `sampling/sampling.h`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cpu.cpu_library import load_functions
from kvfold.plugins.onnxruntime.op_library import HOW_TO_COMPILE
from kvfold.plugins.sampling.schema import SamplingRow

VERSION = 1


class NativeRow(ctypes.Structure):
    """How one row is sampled, where the kernels read it: `draw` and the counts may change between calls."""

    _fields_ = (
        ("draw", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("mask", ctypes.c_void_p),
        ("bias_ids", ctypes.c_void_p),
        ("bias_values", ctypes.c_void_p),
        ("seen_ids", ctypes.c_void_p),
        ("seen_counts", ctypes.c_void_p),
        ("banned_ids", ctypes.c_void_p),
        ("bias_count", ctypes.c_int32),
        ("seen_count", ctypes.c_int32),
        ("banned_count", ctypes.c_int32),
        ("top_k", ctypes.c_int32),
        ("likely", ctypes.c_int32),
        ("temperature", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
        ("frequency_penalty", ctypes.c_float),
        ("presence_penalty", ctypes.c_float),
    )

    def __init__(self, row: SamplingRow) -> None:
        """Points at the row's arrays, and keeps them."""
        super().__init__(
            draw=row.draw,
            top_p=row.top_p,
            mask=_address(row.mask, np.uint32),
            bias_ids=_address(row.bias_ids, np.int32),
            bias_values=_address(row.bias_values, np.float32),
            seen_ids=_address(row.seen_ids, np.int32),
            seen_counts=_address(row.seen_counts, np.int32),
            banned_ids=_address(row.banned_ids, np.int32),
            bias_count=len(row.bias_ids),
            seen_count=len(row.seen_ids),
            banned_count=len(row.banned_ids),
            top_k=min(row.top_k, 2**31 - 1),
            likely=-1 if row.likely is None else row.likely,
            temperature=row.temperature,
            min_p=row.min_p,
            repetition_penalty=row.repetition_penalty,
            frequency_penalty=row.frequency_penalty,
            presence_penalty=row.presence_penalty,
        )
        self.row = row


class _Results(ctypes.Structure):
    _fields_ = (
        ("tokens", ctypes.c_void_p),
        ("status", ctypes.c_void_p),
        ("logprobs", ctypes.c_void_p),
        ("likely_ids", ctypes.c_void_p),
        ("likely_logprobs", ctypes.c_void_p),
        ("likely_capacity", ctypes.c_int64),
    )


class Results:
    """Where results of a number of rows go; each call overwrites the last one's.

    Attributes:
        tokens: int32 [rows]; undefined where the status is not 0.
        status: int32 [rows], `schema.Status`.
        logprobs: float64 [rows].
        likely_ids: int32 [rows, likely].
        likely_logprobs: float64 [rows, likely].
    """

    def __init__(self, rows: int, likely: int) -> None:
        """Room for the `likely` likeliest tokens a row."""
        self.tokens = np.zeros(rows, np.int32)
        self.status = np.zeros(rows, np.int32)
        self.logprobs = np.zeros(rows, np.float64)
        self.likely_ids = np.zeros((rows, likely), np.int32)
        self.likely_logprobs = np.zeros((rows, likely), np.float64)
        arrays = (self.tokens, self.status, self.logprobs, self.likely_ids, self.likely_logprobs)
        self._places = [(array.ctypes.data, array.strides[0]) for array in arrays]
        self._likely = likely
        self.native = self.native_from(0)

    def native_from(self, row: int) -> _Results:
        """As the kernels write them, those of a row first."""
        return _Results(*(address + row * stride for address, stride in self._places), self._likely)


class Batch:
    """Rows that are sampled together, again and again."""

    def __init__(self, rows: Sequence[NativeRow]) -> None:
        """Keeps the rows: what is changed in one counts from the next call on."""
        self._rows = tuple(rows)
        self._addresses = (ctypes.c_void_p * len(rows))(*map(ctypes.addressof, self._rows))
        self._sample = load_sampling().kvfold_sample
        self.results = Results(len(rows), max((row.likely for row in rows if row.likely > 0), default=0))
        self._native = ctypes.byref(self.results.native)
        self._failed = 0

    def begin(self, logits: np.ndarray) -> None:
        """Sample from float32 logits [rows, vocab], row by row."""
        assert logits.dtype == np.float32 and logits.flags.c_contiguous and len(logits) == len(self._rows)
        self._failed = _checked(
            self._sample(logits.ctypes.data, *logits.shape, self._addresses, self._native)
        )

    def finish(self) -> int:
        """How many rows have no token."""
        return self._failed

    def sample_again(self, logits: np.ndarray, at: int) -> bool:
        """Sample one of the same logits' rows once more; returns whether it has a token."""
        row, vocab = logits[at], logits.shape[1]
        address = ctypes.byref(self._addresses, at * ctypes.sizeof(ctypes.c_void_p))
        results = ctypes.byref(self.results.native_from(at))
        return not _checked(self._sample(row.ctypes.data, 1, vocab, address, results))


def score(logits: np.ndarray, token_ids: np.ndarray, likely: int) -> tuple[Results, int]:
    """Log probabilities of a token a row of float32 logits [rows, vocab], and of the likeliest.

    Returns:
        the results, and how many rows have none.
    """
    assert logits.dtype == np.float32 and logits.flags.c_contiguous and len(logits) == len(token_ids)
    results = Results(len(logits), min(likely, logits.shape[1]))
    results.tokens[:] = token_ids
    native = ctypes.byref(results.native)
    failed = load_sampling().kvfold_score(
        logits.ctypes.data, *logits.shape, results.native.likely_capacity, native
    )
    return results, _checked(failed)


def _checked(failed: int) -> int:
    if failed < 0:
        raise MemoryError("sampling ran out of memory")
    return failed


def _address(array: np.ndarray | None, dtype: type) -> int | None:
    if array is None or not array.size:
        return None
    assert array.dtype == dtype and array.flags.c_contiguous
    return array.ctypes.data


@cache
def load_sampling() -> ctypes.CDLL:
    """The library's functions for sampling.

    Raises:
        KernelError: the library is missing, or older or newer than this file.
    """
    functions = load_functions()
    expected = VERSION * 65536 + ctypes.sizeof(NativeRow)
    if not hasattr(functions, "kvfold_sampling_layout") or functions.kvfold_sampling_layout() != expected:
        raise KernelError(f"the CPU kernel library is of another version of kvfold; {HOW_TO_COMPILE}")
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    functions.kvfold_sample.argtypes = [pointer, size, size, pointer, pointer]
    functions.kvfold_score.argtypes = [pointer, size, size, ctypes.c_int32, pointer]
    functions.kvfold_sample.restype = functions.kvfold_score.restype = size
    return functions
