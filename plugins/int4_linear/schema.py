"""Int4Linear as the CPU kernel implements it.

Weights: blocks of 32 inputs of one output, each with a float16 scale d and a float16 minimum m over codes of
0 to 15: w = d * code + m, as GGUF's Q4_1 has it. Without minima a block is symmetric, w = d * (code - 8), as
Q4_0 has it. Activations: int8 by `s` of the token, as Int8Linear's, and a power of two of the block. What a
token's result is never depends on what shares its batch:

    s[t]    = max_k |x[t, k]| / 127                       (0 becomes 1)
    e[t, b] = bits(max_k |x[t, k]|) - bits(max of it over block b) >> 23, 32 at most
    q       = clamp(round_half_even(x / s * 2^e), -127, 127)
    u[b]    = sum over block b of q[t, k] * (code[n, k] - (0 with minima, 8 without))      an exact integer
    a       = sum over b of (u[b] * 2^-e) * d[n, b]
    c       = sum over b of (sum over block b of q[t, k] * 2^-e) * m[n, b]                 with minima
    y       = (a + c) * s[t] + bias[n]                                                     a * s[t] without

`bits` are a float32's as an integer: e is the most by which a block can be shifted up and stay within the
token's largest value. Products with 2^-e are exact. Sums over b start at 0 and go in order; every float32
product and sum is rounded once (no fused multiply-add), so every instruction set gives the same bits.

With `activation_bits` 16 each token has a second plane of integers, as in Int8Linear, 256 times finer:

    low     = clamp(round_half_even((x - q * (s * 2^-e)) / (s * 2^-e / 256)), -127, 127)
    y       = (a + c) of q * s + (a + c) of low * (s / 256) + bias

`input_activation` is what Int8Linear has: with "swiglu" or "geglu", x holds a gate and an up projection side
by side.

A row of (activated) x with a NaN or an infinity gives NaN in all its outputs, and in no other row.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvfold.plugins.int8_linear.schema import ActivationBits, InputActivation

OP_TYPE = "Int4Linear"
DOMAIN = "kvfold"
OPSET = 1

INPUTS = (
    "x",  # float32 [T, in_features]; with an activation [T, 2 * in_features], gate then up
    # uint8 [ceil(out / 16), ceil(in / 32), 4, 16, 4], zero padded: 16 outputs x 32 inputs are 256 bytes;
    # byte (g, o, i) is output o's code of input 4 g + i in its low half, of input 16 + 4 g + i in its high
    "weight",
    "weight_scale",  # float16 [ceil(out / 16), ceil(in / 32), 16]: d, zero padded
    "weight_minimum",  # ? float16, shaped as the scales: m
    "bias",  # ? float32 [out_features]
)
OUTPUTS = ("y",)  # float32 [T, out_features]

BLOCK = 32  # inputs of one scale
TILE_OUT = 16  # outputs that lie side by side
CENTER = 8  # the code of 0 without minima
MAX_CODE = 15
MAX_SHIFT = 32  # of a block's activations
MAX_IN_FEATURES = 131072  # as Int8Linear


@dataclass(frozen=True)
class Attributes:
    """Attributes of one node: the unpadded sizes, what is fused in front, and how fine activations are."""

    in_features: int
    out_features: int
    input_activation: InputActivation = "none"
    activation_bits: ActivationBits = 8
