"""How far off a linear is in 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from kvfold.export.quantize.int4.blocks import Blocks
from kvfold.export.quantize.int8_trials import Int8Trial, row_blocks
from kvfold.plugins.int4_linear.reference import quantize_block_remainder, quantize_blocks


@dataclass(frozen=True)
class Int4Trial:
    """One linear in 4 bits.

    Attributes:
        blocks: of its weight.
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


def int4_trial(x: Tensor, matrix: Tensor, blocks: Blocks, exact: bool) -> Int4Trial:
    """The trial of `blocks`, which stand for matrix [out, in], on inputs x [tokens, in]."""
    integers, factor, token_scale = quantize_blocks(x)
    low, low_scale = quantize_block_remainder(x, integers, factor, token_scale)
    power, *errors = (torch.empty(len(matrix), dtype=torch.float64) for _ in range(3))
    for rows in row_blocks(matrix):
        y, values = x @ matrix[rows].T, blocks.rows(rows).values
        power[rows] = y.square().sum(0).double()
        plain = (integers * factor @ values.T).mul_(token_scale)
        finer = plain + (low * factor @ values.T).mul_(low_scale)
        for error, product in zip(errors, (plain, finer), strict=True):
            error[rows] = product.sub_(y).square_().sum(0).double()
    return Int4Trial(blocks, exact, *(Int8Trial(error, power) for error in errors))
