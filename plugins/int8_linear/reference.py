"""PyTorch reference of Int8Linear: the formula of `schema.py`, on unpacked weights."""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor
from torch.nn import functional

from kvfold.plugins.int8_linear.schema import LOW_PLANE, ActivationBits, InputActivation


def activate(x: Tensor, input_activation: InputActivation) -> Tensor:
    """What the op quantises: x itself, or silu(gate) * up or gelu(gate) * up of x [T, 2 K]."""
    if input_activation == "none":
        return x
    gate, up = x.chunk(2, dim=-1)
    if input_activation == "geglu":
        return gelu_tanh(gate) * up
    return functional.silu(gate) * up


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by tanh (arXiv 1606.08415); 0.5 (1 + tanh(z / 2)) is the sigmoid of z, which cancels nothing."""
    return x * torch.sigmoid(sqrt(8 / pi) * (x + 0.044715 * x**3))


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (as float32) [T, K] and scales [T, 1] of x [T, K], symmetric per token."""
    scale = token_scales(x)
    return torch.clamp(torch.round(x / scale), -127, 127), scale


def token_scales(x: Tensor) -> Tensor:
    """[T, 1] of x [T, K]."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def quantize_remainder(x: Tensor, quantized: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The second plane of 16-bit activations: integers and scales of what `quantize_tokens` rounded off.

    Of the smallest subnormal numbers float32 has no finer ones: a scale of 0, and nothing is left.
    """
    low_scale = scale / LOW_PLANE
    low = torch.clamp(torch.round((x - quantized * scale) / low_scale), -127, 127)
    return torch.where(low_scale == 0, torch.zeros_like(low), low), low_scale


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    input_activation: InputActivation = "none",
    activation_bits: ActivationBits = 8,
) -> Tensor:
    """y [T, N] from x [T, K] (activated [T, 2 K]) and int8 weight [N, K]; sums are exact (float64)."""
    activated = activate(x, input_activation)
    quantized, scale = quantize_tokens(activated)
    y = _product(quantized, weight) * (scale * weight_scale)
    if activation_bits == 16:
        low, low_scale = quantize_remainder(activated, quantized, scale)
        y = y + _product(low, weight) * (low_scale * weight_scale)
    return y if bias is None else y + bias


def _product(quantized: Tensor, weight: Tensor) -> Tensor:
    return (quantized.double() @ weight.double().T).float()
