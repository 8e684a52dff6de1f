"""Attention's backward pass as products of whole matrices, block by block of queries.

PyTorch's fused CPU kernel is fast forwards; backwards it took five times as long, 1.5 of the 3.9 s of an
update on SmolLM2 (one sequence of 2,048 under the plan of the recipe `character`); with this an update takes
3.2 s. The queries of all heads that read one KV head are rows of one matrix, and products of that size are
what a CPU is best at. The formulas are those of arXiv 2205.14135, from the output and the log-sum-exp that
the forward pass kept:

    P = exp(S - lse)    dV = P' dO    dS = P * (dO V' - delta)    dQ = dS K    dK = dS' Q

with delta the sum of dO * O over a head's channels. Both differences come out of the products themselves: a
query row carries -lse as two more channels, against ones in the keys. So they are rounded as what they are,
small where P is large, when the products' dtype is bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # queries at a time; with 64 and 128 an update took longer


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
        sinks: and the first so many, at most `window`.
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
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        first = max(0, start - window + 1)
        # The sinks that the window hides from all of the block come first, by themselves.
        ranges = [slice(0, min(sinks, first)), slice(first, stop)]
        q, g = (x[:, :, start:stop].flatten(1, 2) for x in rows)
        k, v, plain = (_take(x, ranges) for x in (*columns, plain_keys))
        weight = (q @ k.mT).exp_()
        seen = torch.cat([torch.arange(x.start, x.stop) for x in ranges])
        by_head = len(weight), -1, stop - start
        _hide(weight.view(*by_head, len(seen)), torch.arange(start, stop), seen, window, sinks)
        change = (g @ v.mT).mul_(weight)
        to_query[:, :, start:stop] = (change @ plain).view(*by_head, size)
        for sums, share in (to_keys, q[..., :size].mT @ change), (to_values, g[..., :size].mT @ weight):
            hidden = ranges[0].stop
            sums[..., ranges[0]] += share[..., :hidden]
            sums[..., ranges[1]] += share[..., hidden:]
    to_keys, to_values = (x.mT.reshape(keys.shape) for x in (to_keys, to_values))
    return (to_query * scale).view(query.shape), to_keys, to_values


def _take(x: Tensor, ranges: list[slice]) -> Tensor:
    """Rows of x [N, L, channels]."""
    return torch.cat([x[:, part] for part in ranges if part.start < part.stop], dim=1)


def _with_offset(x: Tensor, offset: Tensor, keys: Tensor) -> Tensor:
    """x [B, heads, L, d] as [B * KV heads, group, L, d + 2]: -offset in two channels, coarse and fine."""
    coarse = offset.to(x.dtype)
    fine = (offset - coarse.float()).to(x.dtype)
    wide = torch.cat([x, -coarse[..., None], -fine[..., None]], dim=-1)
    return wide.view(keys.shape[0] * keys.shape[1], -1, *wide.shape[2:])


def _with_ones(x: Tensor) -> Tensor:
    """x [B, KV heads, L, d] as [B * KV heads, L, d + 2]."""
    return torch.nn.functional.pad(x.flatten(0, 1), (0, 2), value=1.0)


def _hide(weight: Tensor, queries: Tensor, keys: Tensor, window: int, sinks: int) -> None:
    """Zero in `weight` [..., queries, keys] what a query does not see; both are positions."""
    distance = queries[:, None] - keys
    hidden = (distance < 0) | ((distance >= window) & (keys >= sinks))
    # Only the first and last keys are hidden from some queries and not from others.
    some = hidden.any(0).nonzero().flatten()
    for start, stop in _runs(some.tolist()):
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
