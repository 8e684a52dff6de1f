"""Scale and minimum of blocks of 4 bits with the least squared error; inputs are the first axis here."""

from __future__ import annotations

import torch
from torch import Tensor

from kvfold.plugins.int4_linear.schema import MAX_CODE

# Widths tried, of the one from a block's least to its largest value: clipping both ends may cost less than
# coarse steps.
WIDTHS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def fit_blocks(values: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima [N] of blocks [32, N], float32 that float16 holds.

    For each width the codes are rounded and the line through them is fitted by least squares, weighted by
    `importance` [32]; the width with the least error is kept.
    """
    least, largest = values.aminmax(dim=0)
    weight = importance / importance.sum()
    mean = weight @ values
    best = torch.full_like(least, torch.inf)
    scale, minimum = torch.zeros_like(least), least
    for width in WIDTHS:
        lost = (largest - least) * ((1 - width) / 2)
        codes = round_codes(values, (largest - least) * (width / MAX_CODE), least + lost)
        mean_code = weight @ codes
        centered = codes.sub_(mean_code)
        spread = weight @ centered.square()
        slope = (weight @ centered.mul_(values)) / torch.where(spread == 0, 1.0, spread)
        d, m = _float16(slope), _float16(mean - slope * mean_code)
        error = weight @ (round_codes(values, d, m).mul_(d).add_(m).sub_(values)).square_()
        better = error < best
        best = torch.where(better, error, best)
        scale, minimum = torch.where(better, d, scale), torch.where(better, m, minimum)
    return scale, minimum


def round_codes(values: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """The nearest codes, as float32."""
    step = torch.where(scale == 0, 1.0, scale)
    return (values - minimum).div_(step).round_().clamp_(0, MAX_CODE)


def _float16(values: Tensor) -> Tensor:
    return values.half().float()
