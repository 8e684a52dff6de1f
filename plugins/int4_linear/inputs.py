"""Random Int4Linear inputs, as numpy arrays, for the parity test of every backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfold.plugins.int4_linear.packing import BlockWeight
from kvfold.plugins.int4_linear.schema import BLOCK, MAX_CODE
from kvfold.plugins.int8_linear.schema import InputActivation


@dataclass(frozen=True)
class Case:
    """What to generate; `zero_row` makes one token all zero, where a scale would divide by zero."""

    tokens: int
    in_features: int
    out_features: int
    minimum: bool = False
    bias: bool = False
    zero_row: bool = False
    input_activation: InputActivation = "none"
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """x [T, K] ([T, 2 K] with an activation), weight [N, K] in blocks and bias [N] or None."""

    x: np.ndarray
    weight: BlockWeight
    bias: np.ndarray | None


def make_inputs(case: Case) -> Inputs:
    """Arrays for one case; the same case always gives the same arrays.

    Activations differ in magnitude by block. Scales have both signs and many magnitudes, float16's subnormal
    numbers among them; some are 0.
    """
    rng = np.random.default_rng(case.seed)
    columns = case.in_features * (1 if case.input_activation == "none" else 2)
    x = rng.standard_normal((case.tokens, columns), dtype=np.float32)
    x *= rng.uniform(0.1, 10, (case.tokens, 1)).astype(np.float32)
    powers = 2.0 ** rng.integers(-6, 1, (case.tokens, -(-columns // BLOCK)))
    x *= np.repeat(powers.astype(np.float32), BLOCK, axis=1)[:, :columns]
    if case.zero_row:
        x[0] = 0
    shape = case.out_features, -(-case.in_features // BLOCK)
    codes = rng.integers(0, MAX_CODE, (case.out_features, case.in_features), np.uint8, endpoint=True)
    scale = rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 4, shape) * rng.integers(0, 8, shape)
    minimum = (rng.standard_normal(shape) * 8).astype(np.float16) if case.minimum else None
    bias = rng.standard_normal(case.out_features, dtype=np.float32) if case.bias else None
    return Inputs(x, BlockWeight(codes, scale.astype(np.float16), minimum), bias)
