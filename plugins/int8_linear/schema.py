"""Int8Linear as the CPU kernel implements it.

Weights: symmetric int8, one scale per output channel, values in [-127, 127]. Activations: symmetric
int8, one dynamic scale per token, so a token's result never depends on what shares its batch.
The integer dot product is exact, so every instruction set gives the same integers:

    s[t]  = max_k |x[t, k]| / 127                       (0 becomes 1)
    q     = clamp(round_half_even(x / s), -127, 127)
    y     = float(sum_k q[t, k] w[n, k]) * (s[t] * weight_scale[n]) + bias[n]
"""

from __future__ import annotations

from dataclasses import dataclass

OP_TYPE = "Int8Linear"
DOMAIN = "kvfold"
OPSET = 1

INPUTS = (
    "x",  # float32 [T, in_features]
    "weight",  # int8 [ceil(out / 16), ceil(in / 4), 16, 4]: blocks of 16 outputs x 4 inputs, zero padded
    "weight_scale",  # float32 [out_features]
    "weight_sum",  # int32 [ceil(out / 16) * 16]: sum over inputs, for kernels that shift x to unsigned
    "bias",  # ? float32 [out_features]
)
OUTPUTS = ("y",)  # float32 [T, out_features]

BLOCK_OUT = 16
BLOCK_IN = 4


@dataclass(frozen=True)
class Attributes:
    """Attributes of one node: the unpadded sizes of the linear."""

    in_features: int
    out_features: int
