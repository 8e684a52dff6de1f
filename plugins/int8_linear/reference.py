"""PyTorch reference of Int8Linear: the formula of `schema.py`, on unpacked weights."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (as float32) [T, K] and scales [T, 1] of x [T, K], symmetric per token."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.clamp(torch.round(x / scale), -127, 127), scale


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """y [T, N] from x [T, K] and int8 weight [N, K]; products are summed exactly (in float64)."""
    quantized, scale = quantize_tokens(x)
    total = (quantized.double() @ weight.double().T).float()
    y = total * (scale * weight_scale)
    return y if bias is None else y + bias
