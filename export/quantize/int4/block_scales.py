"""Smoothing that leaves blocks of 4 bits as they are: one power of two for all 32 inputs of a block.

A block's scale takes the factor, so it costs the weight nothing, and the whole of a block's range is moved.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kvfold.export.quantize.int4.blocks import split
from kvfold.export.quantize.observe import LinearInput
from kvfold.export.quantize.smooth import FLOOR, SmoothingGroup
from kvfold.plugins.int4_linear.schema import BLOCK

# Shares of a block's range that are moved.
SHARES = (1.0, 0.75, 0.5)
# Powers of two at most: a block that calibration never moved must not lose its weights below float16's range.
LARGEST = 8


def block_scale_candidates(group: SmoothingGroup, inputs: Mapping[str, LinearInput]) -> list[Tensor | None]:
    """Scales of source channels to choose from, None for none.

    None alone where channels that repeat together are no whole blocks.
    """
    largest = torch.stack([group.channels(inputs[reader].absmax) for reader in group.readers]).amax(0)
    if group.width % BLOCK and (group.repeats > 1 or len(largest) > group.width):
        return [None]
    ranges = torch.log2(split(largest[None])[0].amax(1).clamp_min(FLOOR))
    powers = [torch.round(share * (ranges - ranges.mean())).clamp(-LARGEST, LARGEST) for share in SHARES]
    scales = [torch.exp2(each).repeat_interleave(BLOCK)[: len(largest)] for each in powers]
    return [None, *scales]
