"""Kernel: many new tokens of each sequence attend to all that they see (flash attention over pages).

A tile holds consecutive tokens of one sequence, and for each of them all query heads of one KV head, so
that K and V are loaded once for all of these. Blocks of keys that no row can see are not visited.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvfold.plugins.cuda.kernels.numerics import (
    LOG2_E,
    edge_block,
    find_heads,
    find_pages,
    find_sequence,
    fold_scales,
    has_holes,
    load_heads,
    logits_of,
    or_never,
    softmax_step,
    to_float,
    window_start,
)

GRID = ("query_tiles", "kv_num_heads", "one")


@triton.jit  # type: ignore[untyped-decorator]
def prefill(
    rotated_query: tl.tensor,  # activation [T, num_heads, HEAD_SIZE]
    key_cache: tl.tensor,  # int8 or activation [pages, PAGE_SIZE, kv_num_heads, HEAD_SIZE]
    value_cache: tl.tensor,
    cumulative_sequence_length: tl.tensor,
    past_seqlens: tl.tensor,
    block_table: tl.tensor,  # int32 [B, table_width]
    head_sink: tl.tensor,  # float32 [num_heads]
    k_scale: tl.tensor,  # float32 [kv_num_heads, 1, HEAD_SIZE]
    v_scale: tl.tensor,
    output: tl.tensor,  # activation [T, num_heads, HEAD_SIZE]
    sequences: tl.tensor,
    table_width: tl.tensor,
    kv_num_heads: tl.tensor,
    window: tl.tensor,
    sinks: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HEAD_SINK: tl.constexpr,
    ROWS: tl.constexpr,  # a power of two >= 16 and >= GROUP_SIZE
    KEYS: tl.constexpr,  # a power of two >= 16
) -> None:
    """ROWS // GROUP_SIZE tokens of one sequence, times the query heads of one KV head."""
    TOKENS_PER_TILE: tl.constexpr = ROWS // GROUP_SIZE
    WIDTH: tl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    INT8: tl.constexpr = key_cache.dtype.element_ty == tl.int8
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # a prompt's last tiles see most: they begin first
    kv_head = tl.program_id(1)
    sequence = find_sequence(cumulative_sequence_length, sequences, tile, TOKENS_PER_TILE)
    first_token = tl.load(cumulative_sequence_length + sequence)
    last_token = tl.load(cumulative_sequence_length + sequence + 1) - 1
    begin = first_token + (tile - (first_token // TOKENS_PER_TILE + sequence)) * TOKENS_PER_TILE
    if begin > last_token:
        return
    past = tl.load(past_seqlens + sequence)
    pages = block_table + sequence.to(tl.int64) * table_width

    rows = tl.arange(0, ROWS)
    tokens = begin + rows // GROUP_SIZE
    positions = past + tokens - first_token
    heads = kv_head * GROUP_SIZE + rows % GROUP_SIZE
    is_row = (rows < TOKENS_PER_TILE * GROUP_SIZE) & (tokens <= last_token)
    channels = tl.arange(0, WIDTH)
    is_channel = channels < HEAD_SIZE
    inside = is_row[:, None] & is_channel[None, :]
    vectors = tokens.to(tl.int64) * (kv_num_heads * GROUP_SIZE) + heads
    offsets = vectors[:, None] * HEAD_SIZE + channels[None, :]  # [ROWS, WIDTH]
    query = tl.load(rotated_query + offsets, mask=inside, other=0.0)
    factor = tl.zeros((ROWS,), tl.float32) + scale
    if INT8:
        query, largest = fold_scales(query, k_scale + kv_head * HEAD_SIZE, HEAD_SIZE, WIDTH)
        query, factor = query.to(tl.float16), largest * scale

    # Keys: those with sinks, then from the first row's window to the last row's own position.
    first = past + begin - first_token
    last = past + tl.minimum(begin + TOKENS_PER_TILE - 1, last_token) - first_token
    tile_window = window_start(first, window)
    key_blocks = tl.cdiv(last + 1, KEYS)
    sink_blocks = tl.minimum(tl.cdiv(sinks, KEYS), key_blocks)
    first_block = tl.maximum(tile_window // KEYS, sink_blocks)
    # Of these blocks the full ones, which every row sees whole, need no masks.
    full_begin = tl.maximum(tl.cdiv(window_start(last, window), KEYS), sink_blocks)
    full_end = tl.maximum((first + 1) // KEYS, full_begin)
    if has_holes(pages, full_begin * KEYS, full_end * KEYS, PAGE_SIZE):
        full_end = full_begin

    running_max = tl.full((ROWS,), float("-inf"), tl.float32)
    running_sum = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    page = find_pages(pages, full_begin, last + 1, PAGE_SIZE, KEYS)
    for block in range(full_begin, full_end):
        heads_of_keys = find_heads(page, block, kv_head, kv_num_heads, HEAD_SIZE, PAGE_SIZE, KEYS)
        page = find_pages(pages, block + 1, last + 1, PAGE_SIZE, KEYS)  # early, as loads wait for it
        k = to_float(load_heads(key_cache + heads_of_keys, None, HEAD_SIZE), query.dtype)
        logits, step = logits_of(tl.dot(query, tl.trans(k)), factor, softcap, SOFTCAP)
        weights, shrink, running_max, running_sum = softmax_step(logits, step, running_max, running_sum)
        v = to_float(load_heads(value_cache + heads_of_keys, None, HEAD_SIZE), query.dtype)
        total = tl.dot(weights.to(query.dtype), v, total * shrink[:, None])

    full_blocks = full_end - full_begin
    row_window = window_start(positions, window)
    block = edge_block(0, sink_blocks, first_block, full_begin, full_blocks)
    page = find_pages(pages, block, last + 1, PAGE_SIZE, KEYS)
    for i in range(sink_blocks + key_blocks - first_block - full_blocks):
        keys = block * KEYS + tl.arange(0, KEYS)
        earliest = or_never(keys, page)  # of the rows that see a key: no row is late enough for a hole
        latest = or_never(keys, keys - sinks)  # of their windows' starts: none is too late for a sink
        wanted = (earliest <= last) & (latest >= tile_window)
        heads_of_keys = find_heads(page, block, kv_head, kv_num_heads, HEAD_SIZE, PAGE_SIZE, KEYS)
        block = edge_block(i + 1, sink_blocks, first_block, full_begin, full_blocks)
        page = find_pages(pages, block, last + 1, PAGE_SIZE, KEYS)
        k = to_float(load_heads(key_cache + heads_of_keys, wanted, HEAD_SIZE), query.dtype)
        logits, step = logits_of(tl.dot(query, tl.trans(k)), factor, softcap, SOFTCAP)
        visible = (earliest[None, :] <= positions[:, None]) & (latest[None, :] >= row_window[:, None])
        logits = tl.where(visible, logits, float("-inf"))
        weights, shrink, running_max, running_sum = softmax_step(logits, step, running_max, running_sum)
        v = to_float(load_heads(value_cache + heads_of_keys, wanted, HEAD_SIZE), query.dtype)
        total = tl.dot(weights.to(query.dtype), v, total * shrink[:, None])

    if HEAD_SINK:  # a key with this logit and the value 0
        sink = tl.load(head_sink + heads) * LOG2_E
        top = tl.maximum(running_max, sink)
        total *= tl.exp2(running_max - top)[:, None]
        running_sum = running_sum * tl.exp2(running_max - top) + tl.exp2(sink - top)
    if INT8:
        v_scales = tl.load(v_scale + kv_head * HEAD_SIZE + channels, mask=is_channel, other=0.0)
        total *= v_scales[None, :]
    result = total / tl.where(running_sum > 0.0, running_sum, 1.0)[:, None]  # zeros where no key was seen
    tl.store(output + offsets, result.to(output.dtype.element_ty), mask=inside)
