"""Attention for one new token of every row over a preallocated cache: what sampling needs to be fast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kvfold.export.model.decoder import Attention, Decoder
from kvfold.export.model.dense_attention import DenseAttention


class StepAttention:
    """A Mixer for [B, 1, ...] batches of an unfolded model: no windows, no shared layers.

    Caches are [layers, B, KV heads, length, head_dim]. The query heads of a KV head stand in the place
    of query positions, so a KV head is read once for all of them.
    """

    def __init__(self, decoder: Decoder, rows: int, length: int) -> None:
        config = decoder.config
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, length, config.head_dim)
        dtype = next(decoder.parameters()).dtype
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)
        self.lengths = [0] * config.num_hidden_layers
        self.rope = DenseAttention(config, decoder.plan)

    @staticmethod
    def row_bytes(decoder: Decoder, length: int) -> int:
        """Bytes of one row's caches: 2 x layers x KV heads x length x head_dim x bytes of a number."""
        config = decoder.config
        itemsize = next(decoder.parameters()).dtype.itemsize
        return 2 * config.num_hidden_layers * config.num_key_value_heads * length * config.head_dim * itemsize

    def __call__(self, attention: Attention, projected: Tensor) -> Tensor:
        """Head outputs [B, 1, q] of projections [B, 1, q + 2 kv]."""
        layer, position = attention.layer, self.lengths[attention.layer]
        query, key, value = attention.split(projected)
        assert key is not None
        assert value is not None
        query = query if attention.q_norm is None else attention.q_norm(query)
        key = key if attention.k_norm is None else attention.k_norm(key)
        self.keys[layer, :, :, position] = self.rope.rotate(key, start=position)[:, 0]
        self.values[layer, :, :, position] = value[:, 0]
        self.lengths[layer] = stop = position + 1
        rows, heads = query.shape[0], attention.num_key_value_heads
        output = functional.scaled_dot_product_attention(
            self.rope.rotate(query, start=position).reshape(rows, heads, -1, attention.head_dim),
            self.keys[layer, :, :, :stop],
            self.values[layer, :, :, :stop],
        )
        return output.reshape(rows, 1, -1)
