"""DenseAttention that is fast backwards where a window bites.

PyTorch's fused CPU kernel is the fastest for plain causal attention, but under a mask its backward
pass computes every masked score (measured on SmolLM2, 2,048 tokens, window 1,024, a layer on one
core: 588 ms; here 221 ms), and in bfloat16 it is slower by another order of magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from export.model.dense_attention import DenseAttention
from plugins.fold_plan import LayerPlan

QUERIES = 128  # of one step; fewer visit fewer hidden keys, more make larger products


class TrainingAttention(DenseAttention):
    """The Mixer of training."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, layer: LayerPlan) -> Tensor:
        """As DenseAttention's; under a window, in steps that touch visible keys only."""
        if layer.sliding_window is None or query.shape[2] <= layer.sliding_window:
            return super().attend(query, keys, values, layer)
        batch, heads, length, size = query.shape
        shared = batch * keys.shape[1]
        output: Tensor = _Windowed.apply(  # type: ignore[no-untyped-call]  # torch has no annotation for it
            query.reshape(shared, -1, length, size) * size**-0.5,
            keys.reshape(shared, length, size),
            values.reshape(shared, length, size),
            layer.sliding_window,
            layer.sink_size,
        )
        return output.reshape(batch, heads, length, size)


class _Windowed(torch.autograd.Function):
    """Attention of queries [n, heads, L, d], scaled, over keys and values [n, L, d].

    Softmax is float32; probabilities are computed again in the backward pass, so memory is that of
    the inputs (arXiv 2205.14135 has the formulas).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, values: Tensor, window: int, sinks: int) -> Tensor:
        output = torch.empty_like(query)
        for rows, seen, hidden in _steps(query.shape[2], window, sinks):
            q = query[:, :, rows].flatten(1, 2)
            p = _probabilities(q, keys[:, seen], hidden)
            output[:, :, rows] = (p.to(values.dtype) @ values[:, seen]).reshape(output[:, :, rows].shape)
        ctx.save_for_backward(query, keys, values, output)
        ctx.horizon = window, sinks
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, keys, values, output = ctx.saved_tensors
        to_query = torch.empty_like(query)
        to_keys, to_values = (torch.zeros_like(x, dtype=torch.float32) for x in (keys, values))
        for rows, seen, hidden in _steps(query.shape[2], *ctx.horizon):
            q, g, o = (x[:, :, rows].flatten(1, 2) for x in (query, gradient, output))
            k, v = keys[:, seen], values[:, seen]
            p = _probabilities(q, k, hidden)
            to_values.index_add_(1, seen, (p.to(v.dtype).mT @ g).float())
            mean = (g.float() * o.float()).sum(-1, keepdim=True)
            to_scores = ((g @ v.mT).float() - mean).mul_(p).to(q.dtype)
            to_query[:, :, rows] = (to_scores @ k).reshape(to_query[:, :, rows].shape)
            to_keys.index_add_(1, seen, (to_scores.mT @ q).float())
        return to_query, to_keys.to(keys.dtype), to_values.to(values.dtype), None, None


def _steps(length: int, window: int, sinks: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Queries of a step, the positions of the keys that any of them sees, and which each does not."""
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        first = max(0, start - window + 1)
        seen = torch.cat([torch.arange(min(sinks, first)), torch.arange(first, stop)])
        distance = torch.arange(start, stop)[:, None] - seen
        yield slice(start, stop), seen, (distance < 0) | ((distance >= window) & (seen >= sinks))


def _probabilities(query: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
    """Softmax over the keys, float32 [n, heads * queries, keys]."""
    scores = (query @ keys.mT).float()
    by_head = scores.view(len(scores), -1, *hidden.shape).masked_fill_(hidden, -torch.inf)
    return by_head.softmax(-1).flatten(1, 2)
