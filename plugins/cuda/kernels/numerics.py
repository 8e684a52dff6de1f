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
# Four int8 n at once: below a byte 0x64, the byte n + 128 is the float16 1152 + n. The instruction that
# converts takes one number, at a quarter of the speed or less.
INT8_TO_FLOAT16: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 bytes, offset;
    xor.b32 bytes, $2, 0x80808080;
    mov.b32 offset, 0x64806480;
    prmt.b32 $0, bytes, 0x64646464, 0x4140;
    prmt.b32 $1, bytes, 0x64646464, 0x4342;
    sub.f16x2 $0, $0, offset;
    sub.f16x2 $1, $1, offset;
    }"""
)
INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)  # knows no PTX
TABLE_BLOCK: tl.constexpr = tl.constexpr(512)  # page ids looked at together


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
def edge_block(
    i: tl.tensor,
    sink_blocks: tl.tensor,
    first_block: tl.tensor,
    full_begin: tl.tensor,
    full_blocks: tl.tensor,
) -> tl.tensor:
    """The i-th of the visible blocks without the full ones, which are a run of them."""
    block = visible_block(i, sink_blocks, first_block)
    return block + tl.where(block >= full_begin, full_blocks, 0)


@triton.jit  # type: ignore[untyped-decorator]
def has_holes(pages: tl.tensor, begin: tl.tensor, end: tl.tensor, PAGE_SIZE: tl.constexpr) -> tl.tensor:
    """Whether a page of the keys from `begin` up to `end` is not mapped."""
    lowest = tl.zeros((TABLE_BLOCK,), tl.int32)
    end_page = tl.cdiv(end, PAGE_SIZE)
    for start in range(begin // PAGE_SIZE, end_page, TABLE_BLOCK):
        i = start + tl.arange(0, TABLE_BLOCK)
        lowest = tl.minimum(lowest, tl.load(pages + i, mask=i < end_page, other=0))
    return tl.min(lowest, 0) < 0


@triton.jit  # type: ignore[untyped-decorator]
def find_pages(
    pages: tl.tensor, block: tl.tensor, end: tl.tensor, PAGE_SIZE: tl.constexpr, KEYS: tl.constexpr
) -> tl.tensor:
    """Page of each of the KEYS keys of a block [KEYS], or the one of all of them.

    Args:
        pages: row of the block table.
        block: of KEYS keys.
        end: the table is not read for keys from this position on; their page is -1.
        PAGE_SIZE: tokens of a page.
        KEYS: of a block.
    """
    if PAGE_SIZE >= KEYS:
        i = block * KEYS // PAGE_SIZE
    else:
        i = block * (KEYS // PAGE_SIZE) + tl.arange(0, KEYS) // PAGE_SIZE
    return tl.load(pages + i, mask=i * PAGE_SIZE < end, other=-1)


@triton.jit  # type: ignore[untyped-decorator]
def find_heads(
    page: tl.tensor,
    block: tl.tensor,
    kv_head: tl.tensor,
    kv_num_heads: tl.tensor,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
) -> tl.tensor:
    """Offsets int64 [KEYS, WIDTH] into a cache of one head of the keys of a block, by their pages."""
    channels = tl.arange(0, triton.next_power_of_2(HEAD_SIZE))
    token = kv_num_heads * HEAD_SIZE
    offsets = (tl.arange(0, KEYS) % PAGE_SIZE * token)[:, None] + (kv_head * HEAD_SIZE + channels)[None, :]
    start = page.to(tl.int64) * (token * PAGE_SIZE)
    if PAGE_SIZE >= KEYS:  # all but a scalar is the same for each block
        start += block * KEYS % PAGE_SIZE * token
    else:
        start = start[:, None]
    return start + offsets


@triton.jit  # type: ignore[untyped-decorator]
def load_heads(heads: tl.tensor, wanted: tl.tensor | None, HEAD_SIZE: tl.constexpr) -> tl.tensor:
    """What lies at `heads` [KEYS, WIDTH]; zeros for channels past HEAD_SIZE and for keys that are not wanted.

    Without `wanted` [KEYS] all keys are.
    """
    WIDTH: tl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    is_channel = (tl.arange(0, WIDTH) < HEAD_SIZE)[None, :]
    if wanted is not None:
        loaded = tl.load(heads, mask=wanted[:, None] & is_channel, other=0)
    elif WIDTH > HEAD_SIZE:
        loaded = tl.load(heads, mask=is_channel, other=0)
    else:
        loaded = tl.load(heads)
    return loaded


@triton.jit  # type: ignore[untyped-decorator]
def or_never(positions: tl.tensor, negative: tl.tensor) -> tl.tensor:
    """Positions, int32, or the last number that there is where `negative` < 0.

    Written in bits: a condition would be put off until each logit is compared.
    """
    return positions | (negative >> 31 & 0x7FFFFFFF)


@triton.jit  # type: ignore[untyped-decorator]
def to_float(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """x in a float type; int8 becomes float16, exactly."""
    if x.dtype != tl.int8:
        result = x.to(dtype)
    elif INTERPRETED:
        result = x.to(tl.float16)
    else:
        result = tl.inline_asm_elementwise(INT8_TO_FLOAT16, "=r,=r,r", [x], tl.float16, is_pure=True, pack=4)
    return result


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
        The product, float32 with each row divided by its largest magnitude, and these [ROWS]. So 11 or 15
        bits of it can be kept whatever the size of the scales.
    """
    channels = tl.arange(0, WIDTH)
    folded = query.to(tl.float32) * tl.load(scales + channels, mask=channels < HEAD_SIZE, other=0.0)[None, :]
    largest = tl.max(tl.abs(folded), 1)
    largest = tl.where(largest > 0.0, largest, 1.0)
    return folded / largest[:, None], largest


@triton.jit  # type: ignore[untyped-decorator]
def logits_of(
    products: tl.tensor, factor: tl.tensor, softcap: tl.tensor, SOFTCAP: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Logits [ROWS, KEYS] and the positive factors [ROWS] that make them those of base 2.

    products * factor is what the softcap applies to.
    """
    if SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2 x) + 1)
        power = tl.exp2(products * (factor * (2.0 * LOG2_E) / softcap)[:, None])
        return 1.0 - 2.0 / (power + 1.0), factor * 0.0 + softcap * LOG2_E
    return products, factor * LOG2_E


@triton.jit  # type: ignore[untyped-decorator]
def softmax_step(
    logits: tl.tensor, factor: tl.tensor, running_max: tl.tensor, running_sum: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Online softmax (arXiv 1805.02867) over one more block of keys.

    The factor is positive, so the maximum may be taken before it, and it then costs nothing: exp2's argument
    is one multiply-add.

    Args:
        logits: [ROWS, KEYS], -inf for keys that are not seen.
        factor: [ROWS], which makes them those of base 2.
        running_max: [ROWS], -inf before the first seen key.
        running_sum: [ROWS], of the weights so far.

    Returns:
        Weights [ROWS, KEYS], the factor [ROWS] of everything summed so far, new maximum, new sum.
    """
    new_max = tl.maximum(running_max, tl.max(logits, 1) * factor)
    base = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf - -inf is no number
    weights = tl.exp2(logits * factor[:, None] - base[:, None])
    shrink = tl.exp2(running_max - base)
    return weights, shrink, new_max, running_sum * shrink + tl.sum(weights, 1)
