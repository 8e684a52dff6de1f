"""Windowed attention for training, a block of queries at a time over the keys that it may see.

Both ways it is products of whole matrices: the queries of all heads that read one KV head are rows of one
matrix, and products of that size are what a CPU is best at. On SmolLM2, one layer of one sequence of 2,048 in
bfloat16 without a window, PyTorch's fused kernel took 36 ms forwards where this takes 17 (two cores of an AMD
EPYC), and its backward pass five times as long as forwards. Scores are rounded to bfloat16 here: KL from the
float32 model was 0.00095 nat a token with either, gradients of eight layers were off by 0.5 to 1.3 % with the
fused kernel's log-sum-exp and by 0.7 to 1.8 % with this one's.

The formulas are those of arXiv 2205.14135, backwards from the output and the log-sum-exp that the forward
pass kept:

    P = exp(S - lse)    dV = P' dO    dS = P * (dO V' - delta)    dQ = dS K    dK = dS' Q

with delta the sum of dO * O over a head's channels. Both differences come out of the products themselves: a
query row carries -lse as two more channels, against ones in the keys. So they are rounded as what they are,
small where P is large, when the products' dtype is bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 128  # queries at a time; 64 and 256 took longer, forwards and backwards


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
    output, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
    keys, values = keys.flatten(0, 1).contiguous(), values.flatten(0, 1).contiguous()
    rows = (query * query.shape[-1] ** -0.5).reshape(len(keys), -1, *query.shape[2:])
    for block in _blocks(query.shape[2], window, sinks, BLOCK, query.device):
        asked = slice(block.start, block.stop)
        scores = rows[:, :, asked].flatten(1, 2) @ block.take(keys).mT
        block.hide(scores, -torch.inf)
        most = scores.amax(-1, keepdim=True)
        weight = scores.sub_(most).exp_()
        total = weight.sum(-1, keepdim=True, dtype=torch.float32)
        output[:, :, asked] = (weight @ block.take(values) / total).view_as(output[:, :, asked])
        lse[:, :, asked] = (most + total.log()).view_as(lse[:, :, asked])
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
    to_query = lse.new_empty((*rows[0].shape[:-1], size))
    # Channels first: so the products below read both factors as they lie in memory.
    to_keys, to_values = (lse.new_zeros(x.flatten(0, 1).mT.shape) for x in (keys, values))
    for block in _blocks(length, window, sinks, BLOCK, query.device):
        q, g = (x[:, :, block.start : block.stop].flatten(1, 2) for x in rows)
        k, v, plain = (block.take(x) for x in (*columns, plain_keys))
        weight = (q @ k.mT).exp_()
        block.hide(weight, 0.0)
        change = (g @ v.mT).mul_(weight)
        asked = to_query[:, :, block.start : block.stop]
        asked.copy_((change @ plain).view_as(asked))
        for sums, share in (to_keys, q[..., :size].mT @ change), (to_values, g[..., :size].mT @ weight):
            sums[..., : block.sinks] += share[..., : block.sinks]
            sums[..., block.first : block.stop] += share[..., block.sinks :]
    to_keys, to_values = (x.mT.reshape(keys.shape) for x in (to_keys, to_values))
    return (to_query * scale).view(query.shape), to_keys, to_values


@dataclass(frozen=True)
class _Block:
    """Queries start..stop - 1 and the keys that one of them sees: 0..sinks - 1, then first..stop - 1.

    Attributes:
        edges: runs of keys that some queries see and some do not: the first of the keys taken, and whether a
            query does not see one, bool [queries, keys of the run].
    """

    start: int
    stop: int
    sinks: int
    first: int
    edges: tuple[tuple[int, Tensor], ...]

    def take(self, x: Tensor) -> Tensor:
        """The block's keys of x [..., L, channels]."""
        seen = x[..., self.first : self.stop, :]
        return torch.cat([x[..., : self.sinks, :], seen], dim=-2) if self.sinks else seen

    def hide(self, x: Tensor, value: float) -> None:
        """Put a value in x [B * KV heads, group * queries, keys taken] where a query does not see a key."""
        by_head = x.view(len(x), -1, self.stop - self.start, x.shape[-1])
        for start, hidden in self.edges:
            by_head[..., start : start + hidden.shape[1]].masked_fill_(hidden, value)


@lru_cache(maxsize=16)
def _blocks(length: int, window: int, sinks: int, size: int, device: torch.device) -> tuple[_Block, ...]:
    starts = range(0, length, size)
    return tuple(_block(start, min(start + size, length), window, sinks, device) for start in starts)


def _block(start: int, stop: int, window: int, sinks: int, device: torch.device) -> _Block:
    first = max(0, start - window + 1)
    apart = min(sinks, first)  # the sinks that the window hides from the whole block
    left, ahead = (max(first, sinks), stop - window), (start + 1, stop)  # of the window, of some query
    runs = [left, ahead] if left[1] < ahead[0] else [(min(left[0], ahead[0]), stop)]
    queries = torch.arange(start, stop, device=device)[:, None]
    edges = []
    for begin, end in runs:
        if begin < end:
            keys = torch.arange(begin, end, device=device)
            hidden = (keys > queries) | ((queries - keys >= window) & (keys >= sinks))
            edges.append((begin - first + apart, hidden))
    return _Block(start, stop, apart, first, tuple(edges))


def _with_offset(x: Tensor, offset: Tensor, keys: Tensor) -> Tensor:
    """x [B, heads, L, d] as [B * KV heads, group, L, d + 2]: -offset in two channels, coarse and fine."""
    coarse = offset.to(x.dtype)
    fine = (offset - coarse.float()).to(x.dtype)
    wide = torch.cat([x, -coarse[..., None], -fine[..., None]], dim=-1)
    return wide.view(keys.shape[0] * keys.shape[1], -1, *wide.shape[2:])


def _with_ones(x: Tensor) -> Tensor:
    """x [B, KV heads, L, d] as [B * KV heads, L, d + 2]."""
    return torch.nn.functional.pad(x.flatten(0, 1), (0, 2), value=1.0)
