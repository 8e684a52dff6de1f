"""How far off a linear is in int8 under several scales of its inputs, measured side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvfold.plugins.int8_linear.reference import quantize_remainder, quantize_tokens

BLOCK_ROWS = 512  # of a weight at a time: rounded again and again while caches hold them
COMPARED_ELEMENTS = 1 << 22  # of a weight, or a few more, by which scales are compared


@dataclass(frozen=True)
class Int8Trial:
    """One linear under one scale, by output; float64.

    Attributes:
        error: sum over tokens of |y_int8 - y|^2, [out].
        power: sum of |y|^2, [out].
    """

    error: Tensor
    power: Tensor

    def relative(self, rows: Tensor | None = None) -> float:
        """|y_int8 - y| / |y| of outputs multiplied with `rows` [out], powers of two: nothing is rounded."""
        weights = torch.ones_like(self.power) if rows is None else rows.double().square()
        power = float((self.power * weights).sum())
        return (float((self.error * weights).sum()) / power) ** 0.5 if power else 0.0


def int8_trials(x: Tensor, weight: Tensor, scales: Sequence[Tensor | None]) -> list[Int8Trial]:
    """A trial for each scale [in] that x [tokens, in] is divided by and the columns of weight [out, in] take.

    Scales are powers of two, so that the float product is the same under each and computed once.
    """
    tokens = [quantize_tokens(x if scale is None else x / scale) for scale in scales]
    power = torch.empty(len(weight), dtype=torch.float64)
    errors = [torch.empty_like(power) for _ in scales]
    for rows in row_blocks(weight):
        part = weight[rows]
        y = x @ part.T
        power[rows] = y.square().sum(0).double()
        for scale, (quantized, token_scale), error in zip(scales, tokens, errors, strict=True):
            integers, weight_scale = quantize_rows(part if scale is None else part * scale)
            product = (quantized @ integers.T).mul_(token_scale * weight_scale)
            error[rows] = product.sub_(y).square_().sum(0).double()
    return [Int8Trial(error, power) for error in errors]


def compared_rows(weight: Tensor) -> Tensor:
    """Evenly spaced rows that stand for a weight where scales are compared; all of a small one."""
    return weight[:: max(1, weight.numel() // COMPARED_ELEMENTS)]


def plain_and_finer_trial(x: Tensor, weight: Tensor, scale: Tensor | None) -> tuple[Int8Trial, Int8Trial]:
    """The trials with 8-bit and with 16-bit activations, which are two planes of int8."""
    divided = x if scale is None else x / scale
    quantized, token_scale = quantize_tokens(divided)
    low, low_scale = quantize_remainder(divided, quantized, token_scale)
    plain, finer, power = (torch.empty(len(weight), dtype=torch.float64) for _ in range(3))
    for rows in row_blocks(weight):
        part = weight[rows]
        y = x @ part.T
        power[rows] = y.square().sum(0).double()
        integers, weight_scale = quantize_rows(part if scale is None else part * scale)
        product = (quantized @ integers.T).mul_(token_scale * weight_scale)
        plain[rows] = (product - y).square_().sum(0).double()
        product += (low @ integers.T).mul_(low_scale * weight_scale)
        finer[rows] = product.sub_(y).square_().sum(0).double()
    return Int8Trial(plain, power), Int8Trial(finer, power)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`packing.quantize_weight` in PyTorch, integers as float32; as no row exceeds 127, none is clipped."""
    scale = absmax(weight, 1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (weight / scale[:, None]).round_(), scale


def absmax(x: Tensor, axis: int) -> Tensor:
    """Largest magnitude along an axis; two passes, which is far faster than aminmax along one."""
    return torch.maximum(x.amax(axis), -x.amin(axis))


def row_blocks(weight: Tensor) -> Iterator[slice]:
    """Slices of a few rows each."""
    return (slice(start, start + BLOCK_ROWS) for start in range(0, len(weight), BLOCK_ROWS))
