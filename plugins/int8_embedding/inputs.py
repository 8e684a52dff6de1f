"""Random Int8Embedding inputs, as numpy arrays, for the parity test of every backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    """What to generate; the first and the last row are looked up wherever there are two tokens."""

    tokens: int
    rows: int
    columns: int
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """ids int64 [T] and float weight [rows, columns], not yet quantised."""

    ids: np.ndarray
    weight: np.ndarray


def make_inputs(case: Case) -> Inputs:
    """Arrays for one case; the same case always gives the same arrays."""
    rng = np.random.default_rng(case.seed)
    ids = rng.integers(0, case.rows, case.tokens)
    if case.tokens > 1:
        ids[0], ids[-1] = case.rows - 1, 0
    return Inputs(ids, rng.standard_normal((case.rows, case.columns), dtype=np.float32))
