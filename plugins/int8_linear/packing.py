"""Quantise a float weight matrix and lay it out in the blocks that the kernels read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from kvfold.plugins.int8_linear.schema import BLOCK_IN, BLOCK_OUT

BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class PackedWeight:
    """The constant inputs of one Int8Linear node; shapes in `schema.py`."""

    weight: np.ndarray
    weight_scale: np.ndarray
    weight_sum: np.ndarray


def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [out, in] and float32 scales [out] of a float matrix [out, in]: absmax / 127 per output."""
    quantized = np.empty(weight.shape, np.int8)
    scale = np.empty(len(weight), np.float32)
    for rows in row_blocks(weight.shape):
        quantized[rows], scale[rows] = _quantize_rows(weight[rows])
    return quantized, scale


def packed_shape(out_features: int, in_features: int) -> tuple[int, int, int, int]:
    """Shape of the packed weight [blocks of outputs, blocks of inputs, 16, 4]."""
    return -(-out_features // BLOCK_OUT), -(-in_features // BLOCK_IN), BLOCK_OUT, BLOCK_IN


def pack_weight(weight: np.ndarray) -> PackedWeight:
    """Quantise float [out, in] and pack it."""
    shape = packed_shape(*weight.shape)
    packed = np.empty(shape, np.int8)
    scale = np.empty(len(weight), np.float32)
    sums = np.empty((shape[0], BLOCK_OUT), np.int32)
    for rows in row_blocks(weight.shape):
        quantized, scale[rows] = _quantize_rows(weight[rows])
        padded = np.pad(quantized, ((0, -len(quantized) % BLOCK_OUT), (0, -weight.shape[1] % BLOCK_IN)))
        blocks = padded.reshape(-1, BLOCK_OUT, shape[1], BLOCK_IN)
        whole = slice(rows.start // BLOCK_OUT, rows.start // BLOCK_OUT + len(blocks))
        packed[whole] = blocks.transpose(0, 2, 1, 3)
        sums[whole] = blocks.sum(axis=(2, 3), dtype=np.int32)
    return PackedWeight(packed, scale, sums.reshape(-1))


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """The first axis of a weight in whole blocks of outputs, some 16 MB of float32 each.

    What is computed of a weight then takes little memory beside it.
    """
    rows = max(1, BLOCK_ELEMENTS // max(1, prod(shape[1:])) // BLOCK_OUT) * BLOCK_OUT
    return (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


def _quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    return np.rint(weight / scale[:, None]).clip(-127, 127).astype(np.int8), scale
