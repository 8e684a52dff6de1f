"""Attention over whole sequences, for calibration, folding, healing and validation in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from kvfold.export.model.decoder import Attention, cap_logits
from kvfold.export.model.fused import fused
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.rope import rope_tables, select_slots
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan

QUERIES_AT_A_TIME = 256  # whose logits of all keys exist at a time where they are capped


class DenseAttention:
    """A Mixer for [B, L, ...] batches in which every sequence has the same length.

    Keys and values of each producer are kept for its consumers, so one object serves one forward
    pass.

    Attributes:
        scales: static KV scales named as in the bundle (`key_scale.<layer>`, ...); where given, keys
            and values are rounded as an int8 cache stores them.
    """

    def __init__(
        self,
        config: ModelConfig,
        plan: FoldPlan,
        scales: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config = config
        self.plan = plan
        self.scales = scales or {}
        self.tables = [rope_tables(config, rope) for rope in config.ropes]
        self.keys_values: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, attention: Attention, projected: Tensor) -> Tensor:
        """Head outputs [B, L, q] of projections [B, L, q + 2 kv] or, for a consumer, [B, L, q]."""
        layer = self.plan.layers[attention.layer]
        query, key, value = attention.split(projected)
        q_norm, k_norm = attention.head_norms
        query = self.rotate(query if q_norm is None else q_norm(query), attention.layer)
        if key is not None and value is not None:
            key = self.rotate(key if k_norm is None else k_norm(key), attention.layer)
            self.keys_values[attention.layer] = (
                self._round(f"key_scale.{attention.layer}", key),
                # A view would keep all of `projected` until the last layer that reads it.
                self._round(f"value_scale.{attention.layer}", value.contiguous()),
            )
        keys, values = self.keys_values[layer.donor]
        query, keys, values = (x.transpose(1, 2) for x in (query, keys, values))
        output = self.attend(query, keys, values, layer, attention.sinks)
        return output.transpose(1, 2).flatten(2)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, layer: LayerPlan, head_sink: Tensor | None
    ) -> Tensor:
        """Softmax attention, [B, heads, L, head_dim] of queries so shaped and keys [B, KV heads, ...].

        `head_sink` [heads] holds a logit per query head that joins each softmax's denominator.
        """
        mask = visible(query.shape[2], layer.sliding_window, layer.sink_size)
        scale = self.config.logit_scale
        if self.config.attention_softcap:
            output, total = attend_softly(query, keys, values, mask, scale, self.config.attention_softcap)
            share = 1.0 if head_sink is None else torch.sigmoid(total - head_sink[:, None])[..., None]
            return output * share
        if head_sink is not None:
            return _attend_with_sink(query, keys, values, mask, head_sink, scale)
        return functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )

    def table(self, layer: int) -> tuple[Tensor, Tensor]:
        """cos and sin that the keys which `layer` reads turn with, [context, head_dim / 2]."""
        cos, sin = self.tables[self.config.layer_ropes[layer]]
        slots = self.plan.layers[layer].rope_slots
        return select_slots(cos, slots), select_slots(sin, slots)

    def rotate(self, x: Tensor, layer: int, start: int = 0) -> Tensor:
        """RoPE of a layer on x [B, L, heads, head_dim] whose first token stands at position `start`."""
        rows = slice(start, start + x.shape[1])
        cos, sin = (table[rows][:, None].to(x) for table in self.table(layer))
        return _turn(x, cos, sin)

    def _round(self, name: str, x: Tensor) -> Tensor:
        if name not in self.scales:
            return x
        scale = self.scales[name].transpose(0, 1).to(x)
        return torch.clamp(torch.round(x / scale), -128, 127) * scale


@fused
def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _attend_with_sink(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, head_sink: Tensor, scale: float
) -> Tensor:
    """The sink as a first key that all queries see, with value zero.

    One more channel gives it its logit: queries hold the logit there, the sink's key 1, all others 0.
    """
    batch, heads, length, size = query.shape
    mask = torch.ones(length, length, dtype=torch.bool).tril() if mask is None else mask
    logit = (head_sink / scale).to(query)[:, None, None].expand(batch, heads, length, 1)
    sink = functional.pad(keys.new_zeros(*keys.shape[:2], 1, size), (0, 1), value=1.0)
    keys, values = (
        torch.cat([sink, functional.pad(keys, (0, 1))], dim=2),
        functional.pad(values, (0, 1, 1, 0)),
    )
    output = functional.scaled_dot_product_attention(
        torch.cat([query, logit], dim=-1),
        keys,
        values,
        attn_mask=functional.pad(mask, (1, 0), value=True),
        scale=scale,
        enable_gqa=True,
    )
    return output[..., :size]


def attend_softly(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Attention whose logits become softcap * tanh(logits / softcap); softcap 0 leaves them.

    Returns:
        Output, as `query` [B, heads, L, head_dim], and log of the softmax's denominator [B, heads, L].
    """
    length, group = query.shape[2], query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    mask = torch.ones(length, length, dtype=torch.bool).tril() if mask is None else mask
    parts = []
    for start in range(0, length, QUERIES_AT_A_TIME):
        asked = slice(start, start + QUERIES_AT_A_TIME)
        logits = cap_logits(query[:, :, asked] @ keys.mT * scale, softcap)
        logits = logits.masked_fill(~mask[asked], -torch.inf)
        parts.append((logits.softmax(-1) @ values, logits.logsumexp(-1)))
    output, total = (torch.cat(part, dim=2) for part in zip(*parts, strict=True))
    return output, total


def visible(length: int, sliding_window: int | None, sink_size: int) -> Tensor | None:
    """Mask [length, length], True where a query sees a key; None is plain causal: no window bites."""
    if sliding_window is None or length <= sliding_window:
        return None
    positions = torch.arange(length)
    distance = positions[:, None] - positions
    return (distance >= 0) & ((distance < sliding_window) | (positions < sink_size))
