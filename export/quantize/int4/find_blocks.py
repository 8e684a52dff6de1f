"""Blocks of 4 bits in which a float matrix is exact already: those of a Q4_0 or Q4_1 tensor, from its values.

What GGUF's formats compute is known to the bit: d * (code - 8) and d * code + m with float16 d and m. A
block that came from there, whole or multiplied with a power of two, gives d, m and codes back, and what
they give is compared with it. Nothing else is, so a block that is found holds the weights exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvfold.export.quantize.int4.blocks import Blocks, split
from kvfold.plugins.int4_linear.schema import BLOCK, CENTER, MAX_CODE

# A matrix of which fewer blocks than this are exact with the codes 0 and 15 in use is of no such format.
FEW = 1 / 8
ROWS = 4096


def find_blocks(matrix: Tensor) -> tuple[Blocks, Tensor]:
    """Blocks of a float32 matrix [out, in], and which of its rows they hold exactly, bool [out].

    What the blocks of other rows hold means nothing. A head is large: memory holds what ROWS rows take.
    """
    pieces = torch.split(matrix, ROWS)
    found = [_find(rows, symmetric=True) for rows in pieces]
    if any(blocks.minimum is not None for blocks, _ in found):
        pairs = zip(pieces, found, strict=True)
        found = [
            each if each[0].minimum is not None else _find(rows, symmetric=False) for rows, each in pairs
        ]
    return Blocks.join([blocks for blocks, _ in found]), torch.cat([whole for _, whole in found])


def _find(matrix: Tensor, *, symmetric: bool) -> tuple[Blocks, Tensor]:
    """`find_blocks` of a few rows; blocks without minima only where all are `symmetric`."""
    # The rest of a row's last block is no value that a block must hold: it repeats one that is.
    rest = matrix[:, -1:].expand(-1, -matrix.shape[1] % BLOCK)
    values = split(torch.cat([matrix, rest], 1)).flatten(0, 1)
    scale, whole = _symmetric(values)
    shape = len(matrix), -1
    if symmetric and bool(whole.all()):
        return _blocks(matrix, values, scale, None), torch.ones(len(matrix), dtype=torch.bool)
    minimum = -CENTER * scale
    whole &= torch.isfinite(minimum)
    for low, span in _codes_in_use():
        left = (~whole).nonzero()[:, 0]
        if len(left) == 0 or (span < MAX_CODE and whole.float().mean() < FEW):
            break
        rest = values[left]
        least, largest = rest.aminmax(dim=1)
        d = _float16((largest - least) / span)
        m = _float16(least - low * d)
        fits = (_codes(rest, d, m) * d[:, None] + m[:, None] == rest).all(1)
        found = left[fits]
        scale[found], minimum[found], whole[found] = d[fits], m[fits], True
    return _blocks(matrix, values, scale, minimum), whole.reshape(shape).all(1)


def _symmetric(values: Tensor) -> tuple[Tensor, Tensor]:
    """Q4_0: the value of largest magnitude has code 0."""
    peak = values.gather(1, values.abs().argmax(1, keepdim=True))[:, 0]
    scale = _float16(peak / -CENTER)
    codes = _codes(values, scale, -CENTER * scale)
    return scale, ((codes - CENTER) * scale[:, None] == values).all(1)


def _codes_in_use() -> Iterator[tuple[int, int]]:
    """Code of a block's least value, and how many codes above it that of its largest is."""
    return ((low, span) for low in range(MAX_CODE) for span in range(MAX_CODE - low, 0, -1))


def _codes(values: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    step = torch.where(scale == 0, 1.0, scale)[:, None]
    return ((values - minimum[:, None]) / step).round_().clamp_(0, MAX_CODE)


def _float16(values: Tensor) -> Tensor:
    """float32 of the nearest float16."""
    return values.half().float()


def _blocks(matrix: Tensor, values: Tensor, scale: Tensor, minimum: Tensor | None) -> Blocks:
    codes = _codes(values, scale, -CENTER * scale if minimum is None else minimum).nan_to_num_(0)
    rows = len(matrix)
    return Blocks(
        codes.to(torch.uint8).reshape(rows, -1)[:, : matrix.shape[1]],
        scale.half().reshape(rows, -1),
        None if minimum is None else minimum.half().reshape(rows, -1),
    )
