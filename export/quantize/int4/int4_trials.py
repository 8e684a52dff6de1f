"""How far off a linear is in 4 bits, and under which scales of its inputs int8 activations add least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from kvfold.export.quantize.int4.blocks import Blocks
from kvfold.export.quantize.int8_trials import Int8Trial, row_blocks
from kvfold.plugins.int8_linear.reference import quantize_remainder, quantize_tokens


@dataclass(frozen=True)
class Int4Trial:
    """One linear in 4 bits under one scale of its inputs.

    Attributes:
        blocks: of its weight, columns scaled.
        exact: whether they are the weight, to the bit.
        plain: with int8 activations.
        finer: with 16-bit activations: what the weight's own rounding costs.
    """

    blocks: Blocks
    exact: bool
    plain: Int8Trial
    finer: Int8Trial

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """From its fields, and theirs, as plain values."""
        plain, finer = Int8Trial(**fields["plain"]), Int8Trial(**fields["finer"])
        return cls(Blocks(**fields["blocks"]), fields["exact"], plain, finer)


def activation_errors(x: Tensor, matrix: Tensor, scales: Sequence[Tensor | None]) -> list[float]:
    """|W x' - W x|^2 / |W x|^2 with x [tokens, in] rounded to int8 after division by each scale [in]."""
    power = float((x @ matrix.T).square().sum())
    errors = []
    for scale in scales:
        divided = x if scale is None else x / scale
        integers, token_scale = quantize_tokens(divided)
        lost = integers * token_scale - divided
        error = float(((lost if scale is None else lost * scale) @ matrix.T).square().sum())
        errors.append(error / power if power else 0.0)
    return errors


def int4_trial(x: Tensor, matrix: Tensor, blocks: Blocks, exact: bool, scale: Tensor | None) -> Int4Trial:
    """The trial of `blocks`, which stand for matrix [out, in] with columns multiplied by `scale` [in]."""
    divided = x if scale is None else x / scale
    integers, token_scale = quantize_tokens(divided)
    low, low_scale = quantize_remainder(divided, integers, token_scale)
    power, *errors = (torch.empty(len(matrix), dtype=torch.float64) for _ in range(3))
    for rows in row_blocks(matrix):
        y, values = x @ matrix[rows].T, blocks.rows(rows).values
        power[rows] = y.square().sum(0).double()
        plain = (integers @ values.T).mul_(token_scale)
        finer = plain + (low @ values.T).mul_(low_scale)
        for error, product in zip(errors, (plain, finer), strict=True):
            error[rows] = product.sub_(y).square_().sum(0).double()
    return Int4Trial(blocks, exact, *(Int8Trial(error, power) for error in errors))
