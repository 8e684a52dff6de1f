"""Random Int8Linear inputs, as numpy arrays, for the parity test of every backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfold.plugins.int8_linear.schema import InputActivation


@dataclass(frozen=True)
class Case:
    """What to generate; `zero_row` makes one token all zero, where a scale would divide by zero."""

    tokens: int
    in_features: int
    out_features: int
    bias: bool = False
    zero_row: bool = False
    input_activation: InputActivation = "none"
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """x [T, K] (activated [T, 2 K]), float weight [N, K] (not yet quantised) and bias [N] or None."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None


def make_inputs(case: Case) -> Inputs:
    """Arrays for one case; the same case always gives the same arrays."""
    rng = np.random.default_rng(case.seed)
    columns = case.in_features * (1 if case.input_activation == "none" else 2)
    x = rng.standard_normal((case.tokens, columns), dtype=np.float32)
    x *= rng.uniform(0.1, 10, (case.tokens, 1)).astype(np.float32)
    if case.zero_row:
        x[0] = 0
    weight = rng.standard_normal((case.out_features, case.in_features), dtype=np.float32)
    bias = rng.standard_normal(case.out_features, dtype=np.float32) if case.bias else None
    return Inputs(x, weight, bias)
