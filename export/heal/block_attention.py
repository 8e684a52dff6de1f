"""Windowed attention for training on a CPU, a block of queries at a time over the keys that it may see.

Forwards that is PyTorch's fused kernel under a mask of the block's own. Backwards it is products of whole
matrices, since the fused kernel took five times as long as forwards, 1.5 of the 3.9 s of an update on SmolLM2
(one sequence of 2,048 under the plan of the recipe `character`): the queries of all heads that read one KV
head are rows of one matrix, and products of that size are what a CPU is best at. The formulas are those of
arXiv 2205.14135, from the output and the log-sum-exp that the forward pass kept:

    P = exp(S - lse)    dV = P' dO    dS = P * (dO V' - delta)    dQ = dS K    dK = dS' Q

with delta the sum of dO * O over a head's channels. Both differences come out of the products themselves: a
query row carries -lse as two more channels, against ones in the keys. So they are rounded as what they are,
small where P is large, when the products' dtype is bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256  # queries at a time; with 64 and 128 an update took longer

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def block_attention(
    query: Tensor, keys: Tensor, values: Tensor, window: int, sinks: int
) -> tuple[Tensor, Tensor]:
    """Output, in the query's shape and dtype, and log of the softmax's denominator, float32 [B, heads, L].

    Args:
        query: [B, heads, L, d]; all three are of one dtype.
        keys, values: [B, KV heads, L, d].
        window: position i sees keys i - window + 1 to i.
        sinks: and the first so many.
    """
    output, lse = torch.empty_like(query), torch.empty(query.shape[:3])
    # The kernel wants as many KV heads as query heads.
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    for block in _blocks(query.shape[2], window, sinks):
        rows = slice(block.start, block.stop)
        mask = torch.zeros(block.hidden.shape, dtype=query.dtype).masked_fill_(block.hidden, -torch.inf)
        k, v = block.take(keys), block.take(values)
        output[:, :, rows], lse[:, :, rows] = _fused(query[:, :, rows], k, v, 0.0, False, attn_mask=mask)
    return output, lse


def attention_gradient(
    gradient: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    lse: Tensor,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, keys and values, float32, in their shapes.

    Args:
        gradient: of the output [B, heads, L, d].
        query: [B, heads, L, d]; all tensors but `lse` are of one dtype, which the products are made in.
        keys, values: [B, KV heads, L, d].
        output: of the attention, [B, heads, L, d].
        lse: log of the softmax's denominator, whatever joined it, float32 [B, heads, L].
        window: position i sees keys i - window + 1 to i.
        sinks: and the first so many.
    """
    length, size = query.shape[2:]
    scale = size**-0.5
    delta = (gradient.float() * output.float()).sum(-1)
    rows = _with_offset(query * scale, lse, keys), _with_offset(gradient, delta, keys)
    columns = _with_ones(keys), _with_ones(values)
    plain_keys = keys.flatten(0, 1)
    to_query = torch.empty((*rows[0].shape[:-1], size))
    # Channels first: so the products below read both factors as they lie in memory.
    to_keys, to_values = (torch.zeros(x.flatten(0, 1).mT.shape) for x in (keys, values))
    for block in _blocks(length, window, sinks):
        q, g = (x[:, :, block.start : block.stop].flatten(1, 2) for x in rows)
        k, v, plain = (block.take(x) for x in (*columns, plain_keys))
        weight = (q @ k.mT).exp_()
        by_head = len(weight), -1, *block.hidden.shape
        _hide(weight.view(by_head), block.hidden)
        change = (g @ v.mT).mul_(weight)
        to_query[:, :, block.start : block.stop] = (change @ plain).view(*by_head[:3], size)
        for sums, share in (to_keys, q[..., :size].mT @ change), (to_values, g[..., :size].mT @ weight):
            sums[..., : block.sinks] += share[..., : block.sinks]
            sums[..., block.first : block.stop] += share[..., block.sinks :]
    to_keys, to_values = (x.mT.reshape(keys.shape) for x in (to_keys, to_values))
    return (to_query * scale).view(query.shape), to_keys, to_values


@dataclass(frozen=True)
class _Block:
    """Queries start..stop - 1 and the keys that one of them sees: 0..sinks - 1, then first..stop - 1.

    Attributes:
        hidden: whether a query does not see a key, bool [queries, keys].
    """

    start: int
    stop: int
    sinks: int
    first: int
    hidden: Tensor

    def take(self, x: Tensor) -> Tensor:
        """The block's keys of x [..., L, channels]."""
        seen = x[..., self.first : self.stop, :]
        return torch.cat([x[..., : self.sinks, :], seen], dim=-2) if self.sinks else seen


def _blocks(length: int, window: int, sinks: int) -> Iterator[_Block]:
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        first = max(0, start - window + 1)
        apart = min(sinks, first)  # the sinks that the window hides from the whole block
        keys = torch.cat([torch.arange(apart), torch.arange(first, stop)])
        distance = torch.arange(start, stop)[:, None] - keys
        hidden = (distance < 0) | ((distance >= window) & (keys >= sinks))
        yield _Block(start, stop, apart, first, hidden)


def _with_offset(x: Tensor, offset: Tensor, keys: Tensor) -> Tensor:
    """x [B, heads, L, d] as [B * KV heads, group, L, d + 2]: -offset in two channels, coarse and fine."""
    coarse = offset.to(x.dtype)
    fine = (offset - coarse.float()).to(x.dtype)
    wide = torch.cat([x, -coarse[..., None], -fine[..., None]], dim=-1)
    return wide.view(keys.shape[0] * keys.shape[1], -1, *wide.shape[2:])


def _with_ones(x: Tensor) -> Tensor:
    """x [B, KV heads, L, d] as [B * KV heads, L, d + 2]."""
    return torch.nn.functional.pad(x.flatten(0, 1), (0, 2), value=1.0)


def _hide(weight: Tensor, hidden: Tensor) -> None:
    """Zero in `weight` [..., queries, keys] what is hidden."""
    # Only the first and last keys are hidden from some queries and not from others.
    for start, stop in _runs(hidden.any(0).nonzero().flatten().tolist()):
        weight[..., start:stop].masked_fill_(hidden[:, start:stop], 0.0)


def _runs(indices: list[int]) -> list[tuple[int, int]]:
    """Ascending integers as half-open ranges."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs
