"""Device functions that several kernels share; shapes stand in brackets.

Softmax works in base 2, as GPUs do: a logit is q.k * scale * log2(e), and exp2 takes the place of exp.
Triton ships no annotations, so its decorator counts as untyped.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Adding and subtracting 1.5 * 2**23 rounds a smaller float32 to an integer, halves to even.
ROUNDER: tl.constexpr = tl.constexpr(12582912.0)


@triton.jit  # type: ignore[untyped-decorator]
def round_half_even(x: tl.tensor) -> tl.tensor:
    """Nearest integer of float32 x, |x| < 2**22, as float32."""
    return (x + ROUNDER) - ROUNDER


@triton.jit  # type: ignore[untyped-decorator]
def find_sequence(
    cumulative_sequence_length: tl.tensor, sequences: tl.tensor, i: tl.tensor, TOKENS_PER_TILE: tl.constexpr
) -> tl.tensor:
    """The sequence of packed token i (TOKENS_PER_TILE 0) or of query tile i.

    Tiles of sequence s begin with tile start // TOKENS_PER_TILE + s, which leaves room for a last tile that
    is not full in every sequence before it.
    """
    low = 0
    high = sequences - 1
    while low < high:
        middle = (low + high + 1) // 2
        first = tl.load(cumulative_sequence_length + middle)
        if TOKENS_PER_TILE > 0:
            first = first // TOKENS_PER_TILE + middle
        if first <= i:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit  # type: ignore[untyped-decorator]
def window_start(position: tl.tensor, window: tl.tensor) -> tl.tensor:
    """First position in the window of a query at `position`; 0 without a window (-1)."""
    return tl.where(window < 0, 0, tl.maximum(position - window + 1, 0))


@triton.jit  # type: ignore[untyped-decorator]
def visible_block(i: tl.tensor, sink_blocks: tl.tensor, first_block: tl.tensor) -> tl.tensor:
    """The i-th block of keys to visit: those that hold sinks, then those of the window from its first."""
    return tl.where(i < sink_blocks, i, tl.maximum(first_block, sink_blocks) + i - sink_blocks)


@triton.jit  # type: ignore[untyped-decorator]
def find_slots(pages: tl.tensor, keys: tl.tensor, wanted: tl.tensor, PAGE_SIZE: tl.constexpr) -> tl.tensor:
    """Slots int64 [KEYS] of the keys at positions `keys`; negative: not wanted, or not mapped.

    Args:
        pages: row of the block table.
        keys: positions [KEYS].
        wanted: [KEYS]; the table is not read for others.
        PAGE_SIZE: tokens of a page.
    """
    page = tl.load(pages + keys // PAGE_SIZE, mask=wanted, other=-1)
    return page.to(tl.int64) * PAGE_SIZE + keys % PAGE_SIZE


@triton.jit  # type: ignore[untyped-decorator]
def load_heads(
    cache: tl.tensor,
    slots: tl.tensor,
    kv_head: tl.tensor,
    kv_num_heads: tl.tensor,
    HEAD_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """One head of each slot [KEYS, WIDTH]; zeros for negative slots and channels past HEAD_SIZE."""
    channels = tl.arange(0, WIDTH)
    heads = cache + ((slots * kv_num_heads + kv_head) * HEAD_SIZE)[:, None]
    inside = (slots >= 0)[:, None] & (channels < HEAD_SIZE)[None, :]
    return tl.load(heads + channels[None, :], mask=inside, other=0)


@triton.jit  # type: ignore[untyped-decorator]
def fold_scales(
    query: tl.tensor, scales: tl.tensor, HEAD_SIZE: tl.constexpr, WIDTH: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """q times the scales of K, which an int8 K then needs no more.

    Args:
        query: [ROWS, WIDTH].
        scales: points to those of the KV head.
        HEAD_SIZE: channels of a head.
        WIDTH: the power of two that holds them.

    Returns:
        The product, float32 with each row divided by its largest magnitude, and these [ROWS, 1]. So 11 or 15
        bits of it can be kept whatever the size of the scales.
    """
    channels = tl.arange(0, WIDTH)
    folded = query.to(tl.float32) * tl.load(scales + channels, mask=channels < HEAD_SIZE, other=0.0)[None, :]
    largest = tl.max(tl.abs(folded), 1)[:, None]
    largest = tl.where(largest > 0.0, largest, 1.0)
    return folded / largest, largest


@triton.jit  # type: ignore[untyped-decorator]
def logits_of(products: tl.tensor, factor: tl.tensor, softcap: tl.tensor, SOFTCAP: tl.constexpr) -> tl.tensor:
    """Base-2 logits; products * factor is what the softcap applies to."""
    if SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2 x) + 1)
        power = tl.exp2(products * (factor * (2.0 * LOG2_E) / softcap))
        return softcap * LOG2_E * (1.0 - 2.0 / (power + 1.0))
    return products * (factor * LOG2_E)


@triton.jit  # type: ignore[untyped-decorator]
def softmax_step(
    logits: tl.tensor, running_max: tl.tensor, running_sum: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Online softmax (arXiv 1805.02867) over one more block of keys.

    Args:
        logits: [ROWS, KEYS], -inf for keys that are not seen.
        running_max: [ROWS], -inf before the first seen key.
        running_sum: [ROWS], of the weights so far.

    Returns:
        Weights [ROWS, KEYS], the factor [ROWS] of everything summed so far, new maximum, new sum.
    """
    new_max = tl.maximum(running_max, tl.max(logits, 1))
    base = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf - -inf is no number
    weights = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(running_max - base)
    return weights, shrink, new_max, running_sum * shrink + tl.sum(weights, 1)
