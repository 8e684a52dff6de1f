"""GPTQ (arXiv 2210.17323): a matrix rounded column by column, each column's error made good by later ones.

In closed form, on the second moment of the linear's inputs over calibration text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvfold.export.quantize.int4.blocks import Blocks
from kvfold.export.quantize.int4.fit_blocks import fit_blocks, round_codes
from kvfold.plugins.int4_linear.schema import BLOCK

# Added to the moment, of its mean diagonal: text of few tokens says nothing of most directions.
DAMPING = 0.01
ROWS = 1024  # of the matrix at a time, which a core's cache holds a block of


def gptq(matrix: Tensor, moment: Tensor) -> Blocks:
    """Round a float32 matrix [out, in] to blocks that give nearly its products with inputs x.

    `moment` is the sum of x x^T, [in, in]; it is used up. Memory: two such squares more, and the codes.
    """
    factor = _inverse_factor(moment)
    parts = [_round_rows(rows, factor) for rows in torch.split(matrix, ROWS)]
    codes, scale, minimum = (torch.cat(each) for each in zip(*parts, strict=True))
    return Blocks(codes, scale, minimum)


def _round_rows(rows: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and minima of a few rows of the matrix."""
    left = rows.T.clone(memory_format=torch.contiguous_format)
    codes = torch.empty(left.shape, dtype=torch.uint8)
    scales, minima = [], []
    for start in range(0, len(left), BLOCK):
        block = slice(start, min(start + BLOCK, len(left)))
        triangle, values = factor[block, block], left[block]
        scale, minimum = fit_blocks(values, triangle.diagonal() ** -2)
        errors = torch.empty_like(values)
        for index in range(len(values)):
            rounded = round_codes(values[index], scale, minimum)
            codes[start + index] = rounded.to(torch.uint8)
            errors[index] = (values[index] - rounded * scale - minimum) / triangle[index, index]
            values[index:] -= triangle[index, index:, None] * errors[index]
        left[block.stop :].addmm_(factor[block, block.stop :].T, errors, alpha=-1)
        scales.append(scale)
        minima.append(minimum)
    return codes.T.contiguous(), torch.stack(scales, 1).half(), torch.stack(minima, 1).half()


def _inverse_factor(moment: Tensor) -> Tensor:
    """Upper triangular U with U^T U the inverse of the damped moment."""
    moment.diagonal().add_(DAMPING * moment.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
    # The Cholesky factor of the matrix read backwards is, read backwards, U's inverse.
    backwards = moment.flip(0, 1)
    torch.linalg.cholesky(backwards, out=backwards)
    inverse = torch.eye(len(moment))
    torch.linalg.solve_triangular(backwards, inverse, upper=False, out=inverse)
    del backwards
    return inverse.flip(0, 1)
