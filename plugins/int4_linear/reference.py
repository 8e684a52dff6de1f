"""PyTorch reference of Int4Linear: the formula of `schema.py`, on unpacked weights."""

from __future__ import annotations

import torch
from torch import Tensor

from kvfold.plugins.int4_linear.schema import BLOCK, CENTER
from kvfold.plugins.int8_linear.reference import activate, quantize_remainder, quantize_tokens
from kvfold.plugins.int8_linear.schema import ActivationBits, InputActivation


def int4_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    minimum: Tensor | None = None,
    bias: Tensor | None = None,
    input_activation: InputActivation = "none",
    activation_bits: ActivationBits = 8,
) -> Tensor:
    """y [T, N] from x [T, K] ([T, 2 K] with an activation).

    Args:
        x: float32.
        codes: uint8 [N, K], 0 to 15.
        scale: float16 [N, ceil(K / 32)].
        minimum: float16, shaped as the scales; None: symmetric blocks.
        bias: float32 [N].
        input_activation: what is fused in front.
        activation_bits: 8, or 16 for two planes of activations.
    """
    activated = activate(x, input_activation)
    quantized, token_scale = quantize_tokens(activated)
    y = _product(quantized, codes, scale, minimum) * token_scale
    if activation_bits == 16:
        low, low_scale = quantize_remainder(activated, quantized, token_scale)
        y = y + _product(low, codes, scale, minimum) * low_scale
    return y if bias is None else y + bias


def _product(quantized: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor | None) -> Tensor:
    """a, or a + c: block by block, in order. A block's sum of products is an integer below 2^24: exact."""
    centered = codes.float() - (CENTER if minimum is None else 0)
    a = torch.zeros(len(quantized), len(codes))
    c = torch.zeros_like(a)
    pairs = zip(torch.split(quantized, BLOCK, 1), torch.split(centered, BLOCK, 1), strict=True)
    for block, (q, w) in enumerate(pairs):
        a = a + (q @ w.T) * scale[:, block].float()
        if minimum is not None:
            c = c + q.sum(1, keepdim=True) * minimum[:, block].float()
    return a if minimum is None else a + c
