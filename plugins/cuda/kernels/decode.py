"""Kernel: one new token of each sequence attends to one split of its keys; `merge` puts splits together.

All query heads of a KV head share each load of K and V, padded to the 16 rows of a tensor core tile. Splits
are aligned to absolute positions, and only those are launched that a windowed token can see.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvfold.plugins.cuda.kernels.numerics import (
    find_heads,
    find_pages,
    fold_scales,
    load_heads,
    logits_of,
    or_never,
    round_half_even,
    softmax_step,
    to_float,
    visible_block,
    window_start,
)

GRID = ("sequences", "kv_num_heads", "splits")


@triton.jit  # type: ignore[untyped-decorator]
def decode(
    rotated_query: tl.tensor,  # activation [B, num_heads, HEAD_SIZE]
    key_cache: tl.tensor,  # int8 or activation [pages, PAGE_SIZE, kv_num_heads, HEAD_SIZE]
    value_cache: tl.tensor,
    past_seqlens: tl.tensor,
    block_table: tl.tensor,  # int32 [B, table_width]
    k_scale: tl.tensor,  # float32 [kv_num_heads, 1, HEAD_SIZE]
    v_scale: tl.tensor,
    partial_max: tl.tensor,  # float32 [B, num_heads, splits]
    partial_sum: tl.tensor,
    partial_output: tl.tensor,  # float32 [B, num_heads, splits, HEAD_SIZE]
    table_width: tl.tensor,
    kv_num_heads: tl.tensor,
    window: tl.tensor,
    sinks: tl.tensor,
    splits: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,  # a multiple of KEYS
    KEYS: tl.constexpr,  # a power of two >= 16
    INT8_DOT: tl.constexpr,  # q.k of an int8 cache in int8; 0 where Triton has none, then in float16
) -> None:
    """All query heads of one KV head, over SPLIT_KEYS keys of one sequence, KEYS at a time."""
    ROWS: tl.constexpr = max(16, triton.next_power_of_2(GROUP_SIZE))
    WIDTH: tl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    INT8: tl.constexpr = key_cache.dtype.element_ty == tl.int8
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    i = tl.program_id(2)
    position = tl.load(past_seqlens + sequence)
    window_begin = window_start(position, window)
    begin = SPLIT_KEYS * visible_block(i, tl.cdiv(sinks, SPLIT_KEYS), window_begin // SPLIT_KEYS)
    end = tl.minimum(begin + SPLIT_KEYS, position + 1)

    rows = tl.arange(0, ROWS)
    is_head = rows < GROUP_SIZE
    heads = (sequence * kv_num_heads + kv_head) * GROUP_SIZE + rows  # rows of [B * num_heads]
    partials = heads * splits + i
    if begin >= end:
        tl.store(partial_max + partials, float("-inf"), mask=is_head)
        tl.store(partial_sum + partials, 0.0, mask=is_head)
        return

    channels = tl.arange(0, WIDTH)
    is_channel = channels < HEAD_SIZE
    inside = is_head[:, None] & is_channel[None, :]
    query = tl.load(rotated_query + heads[:, None] * HEAD_SIZE + channels[None, :], mask=inside, other=0.0)
    factor = tl.zeros((ROWS,), tl.float32) + scale
    if INT8:
        query, largest = fold_scales(query, k_scale + kv_head * HEAD_SIZE, HEAD_SIZE, WIDTH)
        if INT8_DOT:
            high, low = two_planes(query)
            factor = largest * (scale / (127 * 128))
        else:
            query, factor = query.to(tl.float16), largest * scale

    running_max = tl.full((ROWS,), float("-inf"), tl.float32)
    running_sum = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    pages = block_table + sequence * table_width
    page = find_pages(pages, begin // KEYS, end, PAGE_SIZE, KEYS)
    for block in range(begin // KEYS, tl.cdiv(end, KEYS)):
        keys = block * KEYS + tl.arange(0, KEYS)
        visible = (or_never(keys, page) < end) & (or_never(keys, keys - sinks) >= window_begin)
        heads_of_keys = find_heads(page, block, kv_head, kv_num_heads, HEAD_SIZE, PAGE_SIZE, KEYS)
        page = find_pages(pages, block + 1, end, PAGE_SIZE, KEYS)  # early, as loads wait for it
        k = tl.trans(load_heads(key_cache + heads_of_keys, visible, HEAD_SIZE))  # [WIDTH, KEYS]
        if INT8 and INT8_DOT:
            products = (tl.dot(high, k) * 128 + tl.dot(low, k)).to(tl.float32)  # [ROWS, KEYS]
        else:
            products = tl.dot(query, to_float(k, query.dtype))
        logits, step = logits_of(products, factor, softcap, SOFTCAP)
        logits = tl.where(visible[None, :], logits, float("-inf"))
        weights, shrink, running_max, running_sum = softmax_step(logits, step, running_max, running_sum)
        v = load_heads(value_cache + heads_of_keys, visible, HEAD_SIZE)  # [KEYS, WIDTH]
        v = to_float(v, value_cache.dtype.element_ty)
        total = tl.dot(weights.to(v.dtype), v, total * shrink[:, None])

    if INT8:
        v_scales = tl.load(v_scale + kv_head * HEAD_SIZE + channels, mask=is_channel, other=0.0)
        total *= v_scales[None, :]
    tl.store(partial_max + partials, running_max, mask=is_head)
    tl.store(partial_sum + partials, running_sum, mask=is_head)
    outputs = partial_output + partials[:, None] * HEAD_SIZE + channels[None, :]
    tl.store(outputs, total, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def two_planes(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Float32 x in [-1, 1] as (128 * high + low) / (127 * 128), with high and low int8.

    That is 15 bits. One int8 plane is too coarse: errors of 1e-2 to 3e-1 of the output's range were measured.
    """
    steps = round_half_even(x * (127 * 128)).to(tl.int32)
    high = (steps + 64) >> 7
    return high.to(tl.int8), (steps - (high << 7)).to(tl.int8)
