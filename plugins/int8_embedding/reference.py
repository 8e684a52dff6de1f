"""PyTorch reference of Int8Embedding: the formula of `schema.py`, on an unpacked table."""

from __future__ import annotations

from torch import Tensor


def int8_embedding(ids: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """y [T, columns] of ids [T] in int8 weight [rows, columns] with a scale a row."""
    return weight[ids].float() * weight_scale[ids, None]
