"""A weight as blocks of 4 bits: exactly where it has them, else by GPTQ."""

from __future__ import annotations

import torch
from torch import Tensor

from kvfold.export.quantize.int4.blocks import Blocks
from kvfold.export.quantize.int4.find_blocks import find_blocks
from kvfold.export.quantize.int4.gptq import gptq
from kvfold.plugins.int4_linear.schema import CENTER


def is_exact(matrix: Tensor) -> bool:
    """Whether blocks of 4 bits hold all of a matrix [out, in] exactly."""
    return bool(find_blocks(matrix)[1].all())


def round_weight(matrix: Tensor, moment: Tensor | None) -> tuple[Blocks, bool]:
    """Blocks of a matrix [out, in], and whether they are exact; rows that have blocks keep them.

    `moment` is of its inputs, [in, in], and used up; without one all inputs count alike.
    """
    blocks, whole = find_blocks(matrix)
    if bool(whole.all()):
        return blocks, True
    rest = gptq(matrix[~whole], torch.eye(matrix.shape[1]) if moment is None else moment)
    if not bool(whole.any()):
        return rest, False
    assert rest.minimum is not None
    minimum = (-CENTER * blocks.scale.float()).half() if blocks.minimum is None else blocks.minimum
    merged = Blocks(blocks.codes.clone(), blocks.scale.clone(), minimum.clone())
    assert merged.minimum is not None
    merged.codes[~whole], merged.scale[~whole], merged.minimum[~whole] = rest.codes, rest.scale, rest.minimum
    return merged, False
