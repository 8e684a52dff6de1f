"""Quantise a float weight matrix and lay it out in the blocks that the kernels read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfold.plugins.int8_linear.schema import BLOCK_IN, BLOCK_OUT


@dataclass(frozen=True)
class PackedWeight:
    """The constant inputs of one Int8Linear node; shapes in `schema.py`."""

    weight: np.ndarray
    weight_scale: np.ndarray
    weight_sum: np.ndarray


def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [out, in] and float32 scales [out] of a float matrix [out, in]: absmax / 127 per output."""
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    return np.rint(weight / scale[:, None]).clip(-127, 127).astype(np.int8), scale


def pack_weight(weight: np.ndarray) -> PackedWeight:
    """Quantise float [out, in] and pack it."""
    quantized, scale = quantize_weight(weight)
    out_features, in_features = quantized.shape
    padded = np.pad(quantized, ((0, -out_features % BLOCK_OUT), (0, -in_features % BLOCK_IN)))
    rows, columns = padded.shape
    blocks = padded.reshape(rows // BLOCK_OUT, BLOCK_OUT, columns // BLOCK_IN, BLOCK_IN)
    return PackedWeight(
        weight=np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)),
        weight_scale=scale,
        weight_sum=padded.sum(axis=1, dtype=np.int32),
    )
