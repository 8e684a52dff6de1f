"""PyTorch reference of Int4Linear: the formula of `schema.py`, on unpacked weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kvfold.plugins.int4_linear.schema import BLOCK, CENTER, MAX_SHIFT
from kvfold.plugins.int8_linear.reference import activate, quantize_remainder, token_scales
from kvfold.plugins.int8_linear.schema import LOW_PLANE, ActivationBits, InputActivation


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
    quantized, factor, token_scale = quantize_blocks(activated)
    y = _product(quantized, factor, codes, scale, minimum) * token_scale
    if activation_bits == 16:
        low, low_scale = quantize_block_remainder(activated, quantized, factor, token_scale)
        y = y + _product(low, factor, codes, scale, minimum) * low_scale
    return y if bias is None else y + bias


def quantize_blocks(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers (as float32), their powers of two 2^-e, both [..., K], and scales [..., 1] of x [..., K].

    Integers times powers are exact in float32.
    """
    scale = token_scales(x)
    count = -(-x.shape[-1] // BLOCK)
    blocks = functional.pad(x, (0, -x.shape[-1] % BLOCK)).reshape(*x.shape[:-1], count, BLOCK)
    largest = blocks.abs().amax(-1).view(torch.int32)
    shift = (largest.amax(-1, keepdim=True) - largest >> 23).clamp(max=MAX_SHIFT)
    factor = torch.exp2(-shift.float()).repeat_interleave(BLOCK, -1)[..., : x.shape[-1]]
    return torch.clamp(torch.round(x / scale / factor), -127, 127), factor, scale


def quantize_block_remainder(
    x: Tensor, quantized: Tensor, factor: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The second plane of 16-bit activations: integers of what `quantize_blocks` rounded off, and scales."""
    low, _ = quantize_remainder(x, quantized, scale * factor)
    return low, scale / LOW_PLANE


def _product(
    quantized: Tensor, factor: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor | None
) -> Tensor:
    """a, or a + c: block by block, in order. A block's sum of products is an integer below 2^24: exact."""
    centered = codes.float() - (CENTER if minimum is None else 0)
    a = torch.zeros(len(quantized), len(codes))
    c = torch.zeros_like(a)
    pairs = zip(torch.split(quantized * factor, BLOCK, 1), torch.split(centered, BLOCK, 1), strict=True)
    for block, (q, w) in enumerate(pairs):
        a = a + (q @ w.T) * scale[:, block].float()
        if minimum is not None:
            c = c + q.sum(1, keepdim=True) * minimum[:, block].float()
    return a if minimum is None else a + c
