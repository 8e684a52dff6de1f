"""Kernel: prepare the new tokens. Normalises and rotates q and k, and writes k and v into their slots.

Bytes in the cache must be those of the reference, so nothing here is approximate: squares are summed in
float64, division and square root are IEEE, and the kernel must be compiled without fusing a * b + c.
RoPE pairs channel i with i + HEAD_SIZE / 2, so a head is held as two halves [WIDTH], a power of two each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvfold.plugins.cuda.kernels.numerics import find_sequence, round_half_even

GRID = ("tokens", "num_heads", "one")


@triton.jit  # type: ignore[untyped-decorator]
def append(
    query: tl.tensor,  # activation [T, query_stride]
    key: tl.tensor,  # activation [T, kv_stride]
    value: tl.tensor,
    key_cache: tl.tensor,  # int8 or activation [pages, page_size, kv_num_heads, HEAD_SIZE]
    value_cache: tl.tensor,
    cumulative_sequence_length: tl.tensor,
    past_seqlens: tl.tensor,
    cos_cache: tl.tensor,  # float32 [max_position, HEAD_SIZE / 2]
    sin_cache: tl.tensor,
    slot_mapping: tl.tensor,
    q_norm_weight: tl.tensor,  # float32 [HEAD_SIZE]
    k_norm_weight: tl.tensor,
    k_scale: tl.tensor,  # float32 [kv_num_heads, 1, HEAD_SIZE]
    v_scale: tl.tensor,
    rotated_query: tl.tensor,  # activation [T, num_heads, HEAD_SIZE]
    sequences: tl.tensor,
    num_heads: tl.tensor,
    kv_num_heads: tl.tensor,
    query_stride: tl.tensor,
    kv_stride: tl.tensor,
    epsilon: tl.tensor,
    HEAD_SIZE: tl.constexpr,
    QK_NORM: tl.constexpr,
    ROTARY: tl.constexpr,
    WRITES: tl.constexpr,
) -> None:
    """One query head of one token; the first kv_num_heads programs of a token write its KV heads too."""
    token = tl.program_id(0)
    head = tl.program_id(1)
    row = token.to(tl.int64)
    sequence = find_sequence(cumulative_sequence_length, sequences, token, 0)
    position = tl.load(past_seqlens + sequence) + token - tl.load(cumulative_sequence_length + sequence)
    cos = cos_cache + position.to(tl.int64) * (HEAD_SIZE // 2)
    sin = sin_cache + position.to(tl.int64) * (HEAD_SIZE // 2)

    first, second = load_head(query + row * query_stride + head * HEAD_SIZE, HEAD_SIZE)
    if QK_NORM:
        first, second = normalize(first, second, q_norm_weight, epsilon, HEAD_SIZE)
    if ROTARY:
        first, second = rotate(first, second, cos, sin, HEAD_SIZE)
    store_head(rotated_query + (row * num_heads + head) * HEAD_SIZE, first, second, HEAD_SIZE)

    if WRITES:
        slot = tl.load(slot_mapping + token).to(tl.int64)
        if (slot >= 0) & (head < kv_num_heads):
            source = row * kv_stride + head * HEAD_SIZE
            target = (slot * kv_num_heads + head) * HEAD_SIZE
            first, second = load_head(key + source, HEAD_SIZE)
            if QK_NORM:
                first, second = normalize(first, second, k_norm_weight, epsilon, HEAD_SIZE)
            if ROTARY:
                first, second = rotate(first, second, cos, sin, HEAD_SIZE)
            write(key_cache + target, first, second, k_scale + head * HEAD_SIZE, HEAD_SIZE)
            first, second = load_head(value + source, HEAD_SIZE)
            write(value_cache + target, first, second, v_scale + head * HEAD_SIZE, HEAD_SIZE)


@triton.jit  # type: ignore[untyped-decorator]
def load_head(
    start: tl.tensor, HEAD_SIZE: tl.constexpr, padding: tl.constexpr = 0.0
) -> tuple[tl.tensor, tl.tensor]:
    """Both halves of HEAD_SIZE values from `start` on, as float32, padded up to WIDTH."""
    HALF: tl.constexpr = HEAD_SIZE // 2
    channels = tl.arange(0, triton.next_power_of_2(HALF))
    first = tl.load(start + channels, mask=channels < HALF, other=padding)
    second = tl.load(start + HALF + channels, mask=channels < HALF, other=padding)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def store_head(start: tl.tensor, first: tl.tensor, second: tl.tensor, HEAD_SIZE: tl.constexpr) -> None:
    """Store both halves from `start` on, in its type."""
    HALF: tl.constexpr = HEAD_SIZE // 2
    channels = tl.arange(0, triton.next_power_of_2(HALF))
    tl.store(start + channels, first.to(start.dtype.element_ty), mask=channels < HALF)
    tl.store(start + HALF + channels, second.to(start.dtype.element_ty), mask=channels < HALF)


@triton.jit  # type: ignore[untyped-decorator]
def normalize(
    first: tl.tensor, second: tl.tensor, weight: tl.tensor, epsilon: tl.tensor, HEAD_SIZE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """RMSNorm of a head, with the roundings of the reference's `rms_norm`."""
    squares = first.to(tl.float64) * first.to(tl.float64) + second.to(tl.float64) * second.to(tl.float64)
    mean = (tl.sum(squares, 0) / HEAD_SIZE).to(tl.float32)
    factor = tl.div_rn(1.0, tl.sqrt_rn(mean + epsilon))
    first_weight, second_weight = load_head(weight, HEAD_SIZE)
    return first * factor * first_weight, second * factor * second_weight


@triton.jit  # type: ignore[untyped-decorator]
def rotate(
    first: tl.tensor, second: tl.tensor, cos: tl.tensor, sin: tl.tensor, HEAD_SIZE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """RoPE of a head; `cos` and `sin` point to the angles of its position."""
    HALF: tl.constexpr = HEAD_SIZE // 2
    channels = tl.arange(0, triton.next_power_of_2(HALF))
    c = tl.load(cos + channels, mask=channels < HALF, other=0.0)
    s = tl.load(sin + channels, mask=channels < HALF, other=0.0)
    return first * c - second * s, second * c + first * s


@triton.jit  # type: ignore[untyped-decorator]
def write(
    start: tl.tensor, first: tl.tensor, second: tl.tensor, scale: tl.tensor, HEAD_SIZE: tl.constexpr
) -> None:
    """Store a head in a cache, quantised where the cache is int8; `scale` points to the head's channels."""
    if start.dtype.element_ty == tl.int8:
        first_scale, second_scale = load_head(scale, HEAD_SIZE, 1.0)
        # Clamping to whole numbers first gives the same and keeps rounding in its range.
        first = round_half_even(tl.clamp(tl.div_rn(first, first_scale), -128.0, 127.0))
        second = round_half_even(tl.clamp(tl.div_rn(second, second_scale), -128.0, 127.0))
    store_head(start, first, second, HEAD_SIZE)
