"""DenseAttention that is fast in training: it computes hardly more scores than are visible."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from kvfold.export.heal.student.block_attention import attention_gradient, block_attention
from kvfold.export.heal.student.int8_rounding import straight_through
from kvfold.export.heal.student.window_attention import window_attention
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan


class TrainingAttention(DenseAttention):
    """The Mixer of training; `fresh` gives one for each pass."""

    def __init__(
        self, config: ModelConfig, plan: FoldPlan, scales: Mapping[str, Tensor] | None = None
    ) -> None:
        """As DenseAttention's."""
        super().__init__(config, plan, scales)
        self._tables_by_layer: dict[int, tuple[Tensor, Tensor]] = {}

    def fresh(self) -> Self:
        """One without keys and values; tables are shared."""
        other = copy(self)
        other.keys_values = {}
        return other

    def table(self, layer: int) -> tuple[Tensor, Tensor]:
        """As DenseAttention's, made once: a GPU would wait for a list of slots to be sent."""
        if layer not in self._tables_by_layer:
            self._tables_by_layer[layer] = super().table(layer)
        return self._tables_by_layer[layer]

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, layer: LayerPlan, head_sink: Tensor | None
    ) -> Tensor:
        """As DenseAttention's."""
        if self.config.attention_softcap:
            return super().attend(query, keys, values, layer, head_sink)
        # One dtype, as autocast has it of torch's attention: int8 linears give float32, float ones bfloat16.
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        query, keys, values = (x.to(dtype) for x in (query, keys, values))
        compute = self.in_blocks if kind == "cpu" else self.fused
        return compute(query, keys, values, layer, head_sink)

    def in_blocks(
        self, query: Tensor, keys: Tensor, values: Tensor, layer: LayerPlan, head_sink: Tensor | None
    ) -> Tensor:
        """`attend` as a CPU is fastest."""
        query = query * (self.config.logit_scale * query.shape[-1] ** 0.5)
        output: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]  # torch has no annotation for it
            query, keys, values, head_sink, layer.sliding_window or query.shape[2], layer.sink_size
        )
        return output

    def fused(
        self, query: Tensor, keys: Tensor, values: Tensor, layer: LayerPlan, head_sink: Tensor | None
    ) -> Tensor:
        """`attend` as a GPU is fastest."""
        length, window = query.shape[2], layer.sliding_window
        if window is None or (window >= length and head_sink is None):
            return super().attend(query, keys, values, layer, None)
        scale, sinks = self.config.logit_scale, layer.sink_size
        return window_attention(query, keys, values, min(window, length), sinks, scale, head_sink)

    def _round(self, name: str, x: Tensor) -> Tensor:
        """As DenseAttention's; no gradient reaches what the int8 range cuts off."""
        if name not in self.scales:
            return x
        scale, exact = self.scales[name].transpose(0, 1), x.float()
        rounded = super()._round(name, exact)
        return straight_through(exact.clamp(-128.5 * scale, 127.5 * scale), rounded).to(x)


class _Attention(torch.autograd.Function):
    """Of queries [B, heads, L, d] over keys and values [B, KV heads, L, d] and head sinks [heads], if any."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        head_sink: Tensor | None,
        window: int,
        sinks: int,
    ) -> Tensor:
        output, total = block_attention(query, keys, values, window, sinks)
        if head_sink is not None:
            # One key more, without a value.
            keys_alone, total = total, torch.logaddexp(total, head_sink.float()[:, None])
            output = (output * (keys_alone - total).exp()[..., None]).to(query.dtype)
        ctx.save_for_backward(query, keys, values, head_sink, output, total)
        ctx.horizon = window, sinks
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None, None]:
        query, keys, values, head_sink, output, total = ctx.saved_tensors
        gradients = attention_gradient(gradient, query, keys, values, output, total, *ctx.horizon)
        to_query, to_keys, to_values = (x.to(query.dtype) for x in gradients)
        to_sink = None
        if head_sink is not None:
            # Softmax's gradient p (g.v - g.out) of a key whose value v is zero, summed over its queries.
            weight = (head_sink.float()[:, None] - total).exp()
            to_sink = -(weight * (gradient.float() * output.float()).sum(-1)).sum((0, 2)).to(head_sink)
        return to_query, to_keys, to_values, to_sink, None, None
