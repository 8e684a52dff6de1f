"""DenseAttention that is fast in training.

PyTorch's fused CPU kernel is the fastest forwards for plain causal attention, but under a mask it computes
every masked score. A window needs no mask: cut into blocks as long as the window, its queries see their own
block causally, the block before it anti-causally (which is causal once both are read backwards), and the
sinks. Each part is a causal call; the parts are one softmax, so they merge by their log-sum-exp. A head sink
is one part more, of a single key without a value. Backwards, `attention_gradient` needs no more than the
merged output and log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from export.heal.attention_gradient import attention_gradient
from export.heal.straight_through import straight_through
from export.model.dense_attention import DenseAttention
from plugins.fold_plan import LayerPlan

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class TrainingAttention(DenseAttention):
    """The Mixer of training."""

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, layer: LayerPlan, head_sink: Tensor | None
    ) -> Tensor:
        """As DenseAttention's, in parts that hold visible keys only."""
        length, sinks = query.shape[2], layer.sink_size
        window = length if layer.sliding_window is None else min(layer.sliding_window, length)
        if sinks > window:
            return super().attend(query, keys, values, layer, head_sink)
        # One dtype, as autocast has it of the fused kernel: int8 linears give float32, float ones bfloat16.
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else query.dtype
        query, keys, values = (x.to(dtype) for x in (query, keys, values))
        output: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]  # torch has no annotation for it
            query, keys, values, head_sink, window, sinks
        )
        return output

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
        total = torch.full(query.shape[:3], -torch.inf)
        if head_sink is not None:
            total[:] = head_sink.float()[:, None]
        output = torch.zeros(query.shape)
        # The kernel wants as many KV heads as query heads.
        group = query.shape[1] // keys.shape[1]
        wide_keys, wide_values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
        for part in parts(query.shape[2], window, sinks):
            q, k, v = part.queries(query), part.keys(wide_keys), part.keys(wide_values)
            found, weight = _forward(q, k, v, 0.0, part.is_causal)
            before = part.queries(total)
            after = torch.logaddexp(before, weight)
            mixed = part.queries(output) * (before - after).exp()[..., None]
            part.put(output, mixed + found * (weight - after).exp()[..., None])
            part.put(total, after)
        output = output.to(query.dtype)
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


@dataclass(frozen=True)
class Part:
    """Queries and keys, as ranges of positions, that one call of the kernel takes.

    Attributes:
        query_start, query_stop: of the queries.
        key_start, key_stop: of the keys.
        is_causal: query i sees keys 0..i of the part, else all of them.
        is_backwards: both are read from the last to the first.
    """

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int
    is_causal: bool
    is_backwards: bool = False

    def queries(self, x: Tensor) -> Tensor:
        """The part's queries of x [B, heads, L, ...]."""
        return self._turn(x[:, :, self.query_start : self.query_stop])

    def keys(self, x: Tensor) -> Tensor:
        """The part's keys of x [B, heads, L, ...]."""
        return self._turn(x[:, :, self.key_start : self.key_stop])

    def put(self, x: Tensor, value: Tensor) -> None:
        """Inverse of `queries`."""
        x[:, :, self.query_start : self.query_stop] = self._turn(value)

    def _turn(self, x: Tensor) -> Tensor:
        return x.flip(2) if self.is_backwards else x


def parts(length: int, window: int, sinks: int) -> Iterator[Part]:
    """Calls that together cover, once each, the visible pairs of `length` positions; sinks <= window.

    Query i of a block sees its own block up to itself; keys i + 1 and later of the block before; and of
    the first `sinks` positions those that the window hides: in block 1 up to i, later all of them.
    """
    for start in range(0, length, window):
        stop = min(start + window, length)
        yield Part(start, stop, start, stop, is_causal=True)
        if start == 0:
            continue
        before = start - window
        seeing = min(stop - start, window - 1)  # the last query of a whole block sees none of the one before
        if seeing:
            last = before + seeing
            yield Part(start, start + seeing, before + 1, last + 1, is_causal=True, is_backwards=True)
            if last + 1 < start:
                yield Part(start, stop, last + 1, start, is_causal=False)
        if sinks:
            yield Part(start, stop, 0, sinks, is_causal=before == 0)
