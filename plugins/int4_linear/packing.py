"""Weights in blocks of 4 bits, and the layout of them that the kernels read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfold.plugins.int4_linear.schema import BLOCK, CENTER, MAX_CODE, TILE_OUT


@dataclass(frozen=True)
class BlockWeight:
    """A weight matrix in blocks of 32 inputs; the last block of a row may be shorter.

    Attributes:
        codes: uint8 [out, in], 0 to 15.
        scale: float16 [out, ceil(in / 32)].
        minimum: float16, shaped as the scales; None: symmetric blocks, w = scale * (code - 8).
    """

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None = None


@dataclass(frozen=True)
class PackedWeight:
    """The constant inputs of one Int4Linear node; shapes in `schema.py`."""

    weight: np.ndarray
    weight_scale: np.ndarray
    weight_minimum: np.ndarray | None


def quantize_weight(weight: np.ndarray, *, symmetric: bool = False) -> BlockWeight:
    """Blocks of a float matrix [out, in], each value rounded to its nearest code.

    With minima the codes span a block's least to its largest value (0 included where a block is padded);
    symmetric, its value of largest magnitude is code 0, as in Q4_0.
    """
    blocks = _blocks(weight.astype(np.float32))
    if symmetric:
        peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)[..., 0]
        scale, minimum = (peak / -CENTER).astype(np.float16), None
        offset = np.float32(-CENTER) * scale.astype(np.float32)
    else:
        minimum = blocks.min(-1).astype(np.float16)
        offset = minimum.astype(np.float32)
        scale = ((blocks.max(-1) - offset) / MAX_CODE).astype(np.float16)
    step = np.where(scale == 0, 1, scale).astype(np.float32)
    codes = np.rint((blocks - offset[..., None]) / step[..., None]).clip(0, MAX_CODE).astype(np.uint8)
    out_features, in_features = weight.shape
    return BlockWeight(codes.reshape(out_features, -1)[:, :in_features], scale, minimum)


def dequantize_weight(weight: BlockWeight) -> np.ndarray:
    """The float32 matrix [out, in] that the blocks stand for: each product and sum rounded once."""
    scale = weight.scale.astype(np.float32)[..., None]
    if weight.minimum is None:
        values = (_blocks(weight.codes).astype(np.float32) - CENTER) * scale
    else:
        values = _blocks(weight.codes) * scale + weight.minimum.astype(np.float32)[..., None]
    out_features, in_features = weight.codes.shape
    return np.ascontiguousarray(values.reshape(out_features, -1)[:, :in_features])


def pack_weight(weight: BlockWeight) -> PackedWeight:
    """Lay blocks out as the kernels read them."""
    codes = _pad_rows(_blocks(weight.codes))
    rows, blocks, _ = codes.shape
    halves = codes.reshape(rows // TILE_OUT, TILE_OUT, blocks, 2, BLOCK // 8, 4)
    packed = halves[:, :, :, 0] | halves[:, :, :, 1] << np.uint8(4)
    return PackedWeight(
        weight=np.ascontiguousarray(packed.transpose(0, 2, 3, 1, 4)),
        weight_scale=_pack_rows(weight.scale),
        weight_minimum=None if weight.minimum is None else _pack_rows(weight.minimum),
    )


def _blocks(matrix: np.ndarray) -> np.ndarray:
    """[out, blocks, 32] of [out, in], zero padded."""
    out_features, in_features = matrix.shape
    return np.pad(matrix, ((0, 0), (0, -in_features % BLOCK))).reshape(out_features, -1, BLOCK)


def _pad_rows(array: np.ndarray) -> np.ndarray:
    return np.pad(array, ((0, -len(array) % TILE_OUT), *((0, 0) for _ in array.shape[1:])))


def _pack_rows(values: np.ndarray) -> np.ndarray:
    """[tiles, blocks, 16] of one number a block [out, blocks]."""
    padded = _pad_rows(values)
    tiles = padded.reshape(len(padded) // TILE_OUT, TILE_OUT, -1)
    return np.ascontiguousarray(tiles.transpose(0, 2, 1))
