"""Attention over whole sequences, for calibration, folding, healing and validation in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from export.model.config import ModelConfig
from export.model.rope import rope_tables
from plugins.fold_plan import FoldPlan

if TYPE_CHECKING:
    from export.model.decoder import Attention


class DenseAttention:
    """A Mixer for [B, L, ...] batches in which every sequence has the same length.

    Keys and values of each producer are kept for its consumers, so one object serves one forward
    pass; with `keep_cache` it serves a generation: each further call continues where the last ended.

    Attributes:
        scales: static KV scales named as in the bundle (`key_scale.<layer>`, ...); where given, keys
            and values are rounded as an int8 cache stores them.
    """

    def __init__(
        self,
        config: ModelConfig,
        plan: FoldPlan,
        scales: Mapping[str, Tensor] | None = None,
        *,
        keep_cache: bool = False,
    ) -> None:
        self.plan = plan
        self.scales = scales or {}
        self.keep_cache = keep_cache
        self.cos, self.sin = rope_tables(config)
        self.keys_values: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, attention: Attention, projected: Tensor) -> Tensor:
        """Head outputs [B, L, q] of projections [B, L, q + 2 kv] or, for a consumer, [B, L, q]."""
        layer = self.plan.layers[attention.layer]
        query, key, value = attention.split(projected)
        past = self._past_length(attention.layer) if key is not None else None
        if past is None:  # a consumer: its donor has already appended this step's tokens
            past = self.keys_values[layer.donor][0].shape[1] - query.shape[1]
        query = query if attention.q_norm is None else attention.q_norm(query)
        query = self.rotate(query, past)
        if key is not None and value is not None:
            key = key if attention.k_norm is None else attention.k_norm(key)
            self._store(attention.layer, self.rotate(key, past), value)
        keys, values = self.keys_values[layer.donor]
        mask = visible(query.shape[1], keys.shape[1], layer.sliding_window, layer.sink_size)
        output = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None and query.shape[1] > 1,
            enable_gqa=True,
        )
        return output.transpose(1, 2).flatten(2)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """RoPE on x [B, L, heads, head_dim] whose first token stands at position `start`."""
        stop = start + x.shape[1]
        cos, sin = self.cos[start:stop, None].to(x), self.sin[start:stop, None].to(x)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _past_length(self, layer: int) -> int:
        kept = self.keys_values.get(layer) if self.keep_cache else None
        return 0 if kept is None else kept[0].shape[1]

    def _store(self, layer: int, key: Tensor, value: Tensor) -> None:
        key = self._round(f"key_scale.{layer}", key)
        value = self._round(f"value_scale.{layer}", value)
        if self.keep_cache and layer in self.keys_values:
            past_key, past_value = self.keys_values[layer]
            key, value = torch.cat([past_key, key], dim=1), torch.cat([past_value, value], dim=1)
        self.keys_values[layer] = key, value

    def _round(self, name: str, x: Tensor) -> Tensor:
        if name not in self.scales:
            return x
        scale = self.scales[name].transpose(0, 1).to(x)
        return torch.clamp(torch.round(x / scale), -128, 127) * scale


def visible(queries: int, total: int, sliding_window: int | None, sink_size: int) -> Tensor | None:
    """Mask [queries, total], True where seen; None means plain causal from position 0 (or one query)."""
    past = total - queries
    no_window = sliding_window is None or total <= sliding_window
    if no_window and (past == 0 or queries == 1):
        return None
    distance = torch.arange(past, total)[:, None] - torch.arange(total)[None]
    mask = distance >= 0
    if sliding_window is not None:
        mask &= (distance < sliding_window) | (torch.arange(total) < sink_size)
    return mask
