"""Rounding as it is deployed in the forward pass, and as if nothing were rounded in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kvfold.export.model.fused import fused
from kvfold.plugins.int8_linear.reference import quantize_remainder, quantize_tokens
from kvfold.plugins.int8_linear.schema import ActivationBits

ROWS = 256  # tokens that a CPU rounds at a time, so that what is in between stays in the core's cache


@dataclass(frozen=True)
class Rounding:
    """How one linear rounds.

    Attributes:
        activation_bits: 8, or 16 for two int8 planes.
        smoothing: what its input is divided by, and its weight's columns multiplied with, before either
            is rounded; powers of two, float32 [in].
    """

    activation_bits: ActivationBits
    smoothing: Tensor

    def planes(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Integers (as float32) [T, in] and scales [T, 1] whose products add up to x [T, in], smoothed."""
        return _planes(x, self.smoothing, self.activation_bits)

    def tokens(self, x: Tensor) -> Tensor:
        """x [T, in] rounded; its gradient is x's."""
        with torch.no_grad():
            rounded = torch.stack([plane * scale for plane, scale in self.planes(x)]).sum(0)
        return straight_through(x, rounded * self.smoothing)

    def weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """int8 [out, in] and scales [out] of a float weight, smoothed."""
        integers, scale = quantize_tokens(weight * self.smoothing)
        return integers.to(torch.int8), scale[:, 0]


@fused
def _planes(x: Tensor, smoothing: Tensor, activation_bits: ActivationBits) -> list[tuple[Tensor, Tensor]]:
    x = x / smoothing
    quantized, scale = quantize_tokens(x)
    if activation_bits == 8:
        return [(quantized, scale)]
    return [(quantized, scale), quantize_remainder(x, quantized, scale)]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient of x."""
    result: Tensor = _StraightThrough.apply(x, rounded)  # type: ignore[no-untyped-call]  # torch has no annotation for it
    return result


class _Int8Product(torch.autograd.Function):
    """x W^T of rounded x [T, in] and W [out, in]; exact integer sums forwards, `dtype` backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        integers: Tensor,
        weight_scale: Tensor,
        rounding: Rounding,
        dtype: torch.dtype,
    ) -> Tensor:
        learns = weight is not None
        output = torch.empty(len(x), len(integers))
        seen = torch.empty(x.shape if learns else 0, dtype=dtype)
        step = ROWS if x.device.type == "cpu" else len(x)
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            planes = rounding.planes(x[rows])
            products = [
                torch._int_mm(plane.to(torch.int8), integers.T) * (scale * weight_scale)
                for plane, scale in planes
            ]
            output[rows] = products[0] if len(products) == 1 else products[0] + products[1]
            if learns:
                seen[rows] = torch.stack([plane * scale for plane, scale in planes]).sum(0)
        ctx.save_for_backward(integers, weight_scale, seen)
        ctx.rounding, ctx.dtype, ctx.learns = rounding, dtype, learns
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        integers, weight_scale, seen = ctx.saved_tensors
        smoothing = ctx.rounding.smoothing
        # int8 is exact in bfloat16.
        to_x = ((gradient * weight_scale).to(ctx.dtype) @ integers.to(ctx.dtype)).float() / smoothing
        to_weight = (gradient.to(ctx.dtype).T @ seen).float() * smoothing if ctx.learns else None
        return to_x, to_weight, None, None, None, None


class Int8Linear(nn.Module):
    """A linear of the model in training that computes what its deployed int8 linear does."""

    def __init__(self, linear: nn.Linear, rounding: Rounding, dtype: torch.dtype, frozen: Tensor | None):
        """In place of `linear`, whose bias, and whose weight where it is trained, are given at each call.

        `frozen` is a weight [out, in] that never changes; it is rounded here. `dtype` multiplies gradients.
        """
        super().__init__()
        self.weight = linear.weight if frozen is None else None
        self.bias = linear.bias
        self.rounding, self.dtype = rounding, dtype
        self._rounded = None if frozen is None else rounding.weight(frozen)

    def forward(self, x: Tensor) -> Tensor:
        """y float32 [..., out] of x [..., in]."""
        weight = self.weight
        rounded = self._rounded
        if weight is not None:
            with torch.no_grad():
                rounded = self.rounding.weight(weight)
        assert rounded is not None, "a linear without a frozen weight is given one"
        y: Tensor = _Int8Product.apply(  # type: ignore[no-untyped-call]  # torch has no annotation for it
            x.flatten(0, -2).float(), weight, *rounded, self.rounding, self.dtype
        )
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias
