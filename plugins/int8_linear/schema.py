"""Int8Linear as the CPU kernel implements it.

Weights: symmetric int8, one scale per output channel, values in [-127, 127]. Activations: symmetric,
one dynamic scale per token, so a token's result never depends on what shares its batch.
The integer dot product is exact, so every instruction set gives the same integers:

    s[t]  = max_k |x[t, k]| / 127                       (0 becomes 1)
    q     = clamp(round_half_even(x / s), -127, 127)
    y     = float(sum_k q[t, k] w[n, k]) * (s[t] * weight_scale[n]) + bias[n]

With `activation_bits` 16 the rounding error of q is quantised once more, 256 times finer, and its
product added: activations of 15 bits for a second pass of int8 products over the same weights.

    low   = clamp(round_half_even((x - q s) / (s / 256)), -127, 127)
    y     = float(sum_k q w) * (s * weight_scale) + float(sum_k low w) * (s / 256 * weight_scale) + bias

With `input_activation` "swiglu", x holds a gate and an up projection side by side, and the op quantises
silu(x[:, :in_features]) * x[:, in_features:]: the float intermediate never goes through memory. "geglu" is
the same with GELU, approximated by tanh: gelu(g) = g / (1 + exp(-2 sqrt(2 / pi) (g + 0.044715 g^3))).

A row of (activated) x with a NaN or an infinity gives NaN in all its outputs, and in no other row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OP_TYPE = "Int8Linear"
DOMAIN = "kvfold"
OPSET = 1

INPUTS = (
    "x",  # float32 [T, in_features]; with an activation [T, 2 * in_features], gate then up
    "weight",  # int8 [ceil(out / 16), ceil(in / 4), 16, 4]: blocks of 16 outputs x 4 inputs, zero padded
    "weight_scale",  # float32 [out_features]
    "weight_sum",  # int32 [ceil(out / 16) * 16]: sum over inputs, for kernels that shift x to unsigned
    "bias",  # ? float32 [out_features]
)
OUTPUTS = ("y",)  # float32 [T, out_features]

BLOCK_OUT = 16
BLOCK_IN = 4
MAX_IN_FEATURES = 131072  # beyond it an int32 sum could overflow

InputActivation = Literal["none", "swiglu", "geglu"]
ActivationBits = Literal[8, 16]
LOW_PLANE = 256  # how much finer the second plane of 16-bit activations is


@dataclass(frozen=True)
class Attributes:
    """Attributes of one node: the unpadded sizes, what is fused in front, and how fine activations are."""

    in_features: int
    out_features: int
    input_activation: InputActivation = "none"
    activation_bits: ActivationBits = 8
