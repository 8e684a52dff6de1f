"""PyTorch reference of PagedAttention: the eager body of the torch custom op `kvfold::paged_attention`.

Every backend is held against this file. It is written to be read, not to be fast: one sequence at
a time, all in float32. The custom op is functional (it returns new caches), so torch.export needs
no alias analysis; the ONNX node it becomes updates the caches in place.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("kvfold::paged_attention", mutates_args=())
def paged_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    key_cache: Tensor,
    value_cache: Tensor,
    cumulative_sequence_length: Tensor,
    past_seqlens: Tensor,
    block_table: Tensor,
    cos_cache: Tensor | None,
    sin_cache: Tensor | None,
    slot_mapping: Tensor,
    head_sink: Tensor | None,
    q_norm_weight: Tensor | None,
    k_norm_weight: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    softcap: float,
    local_window_size: int,
    sink_size: int,
    do_rotary: int,
    rotary_interleaved: int,
    qk_norm_epsilon: float,
    k_quant_type: str,
    v_quant_type: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend T packed new tokens over paged caches; see `schema.py` for shapes and attributes.

    Returns:
        output [T, num_heads * head_size], key_cache_out and value_cache_out (new tensors).

    Raises:
        ValueError: an attribute or a combination of inputs that the contract rules out.
    """
    if rotary_interleaved:
        raise ValueError("rotary_interleaved is 1; kvfold writes the half-split layout (0) only")
    if (q_norm_weight is None) != (k_norm_weight is None):
        raise ValueError("q_norm_weight and k_norm_weight must both be present or both be absent")
    head_size = key_cache.shape[-1]
    query, key, value = split_heads(query, key, value, num_heads, kv_num_heads, head_size)
    positions = token_positions(cumulative_sequence_length, past_seqlens)
    if q_norm_weight is not None and k_norm_weight is not None:
        query = rms_norm(query, q_norm_weight, qk_norm_epsilon)
        key = rms_norm(key, k_norm_weight, qk_norm_epsilon)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        cos, sin = cos_cache[positions], sin_cache[positions]
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    key_cache = write(key_cache, key, slot_mapping, k_scale)
    value_cache = write(value_cache, value, slot_mapping, v_scale)

    output = torch.empty_like(query)
    bounds = cumulative_sequence_length.tolist()
    for sequence, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            continue
        total = int(past_seqlens[sequence]) + end - start
        keys, mapped = gather(key_cache, block_table[sequence], total, k_scale)
        values, _ = gather(value_cache, block_table[sequence], total, v_scale)
        visible = visibility(positions[start:end], mapped, local_window_size, sink_size)
        output[start:end] = attend(
            query[start:end], keys, values, visible, scale=scale, softcap=softcap, head_sink=head_sink
        )
    return output.flatten(1), key_cache, value_cache


@paged_attention.register_fake
def _paged_attention_shapes(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    key_cache: Tensor,
    value_cache: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    num_heads = rest[-11]
    output = query.new_empty(query.shape[0], num_heads * key_cache.shape[-1])
    return output, torch.empty_like(key_cache), torch.empty_like(value_cache)


def split_heads(
    query: Tensor, key: Tensor | None, value: Tensor | None, num_heads: int, kv_num_heads: int, head_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, num_heads, head_size], k and v [T, kv_num_heads, head_size] from packed or separate input."""
    if key is None or value is None:
        sizes = [num_heads * head_size, kv_num_heads * head_size, kv_num_heads * head_size]
        query, key, value = torch.split(query, sizes, dim=-1)
    return (
        query.reshape(-1, num_heads, head_size),
        key.reshape(-1, kv_num_heads, head_size),
        value.reshape(-1, kv_num_heads, head_size),
    )


def token_positions(cumulative_sequence_length: Tensor, past_seqlens: Tensor) -> Tensor:
    """Position of each packed token in its own sequence, int64 [T]."""
    lengths = cumulative_sequence_length.diff()
    start = (past_seqlens - cumulative_sequence_length[:-1]).repeat_interleave(lengths)
    return start.long() + torch.arange(int(lengths.sum()))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm over the last axis (arXiv 1910.07467).

    The squares are summed in float64, so that any order of summation rounds to the same float32:
    a normalised key is quantised next, and cache bytes must be equal on every backend.
    """
    mean = x.double().square().mean(-1, keepdim=True).float()
    return x * torch.rsqrt(mean + epsilon) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE (arXiv 2104.09864), half-split layout; x [T, heads, d], cos and sin [T, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def quantize(x: Tensor, scale: Tensor) -> Tensor:
    """int8 of x [T, heads, d] under a static symmetric scale (heads, 1, d); rounds half to even."""
    return torch.clamp(torch.round(x / scale.transpose(0, 1)), -128, 127).to(torch.int8)


def write(cache: Tensor, new: Tensor, slot_mapping: Tensor, scale: Tensor | None) -> Tensor:
    """A copy of the cache with each new token in its slot; slot -1 is skipped."""
    kept = slot_mapping >= 0
    rows = new[kept] if scale is None else quantize(new[kept], scale)
    flat = cache.clone().reshape(-1, *cache.shape[2:])
    flat[slot_mapping[kept].long()] = rows.to(cache.dtype)
    return flat.reshape(cache.shape)


def gather(cache: Tensor, pages: Tensor, total: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first `total` tokens of a sequence [total, heads, d] and which of them are mapped [total]."""
    page_size = cache.shape[1]
    pages = pages[: (total + page_size - 1) // page_size].long()
    tokens = cache[pages.clamp(min=0)].float()
    if scale is not None:
        tokens = tokens * scale.transpose(0, 1)
    mapped = (pages >= 0).repeat_interleave(page_size)[:total]
    tokens = tokens.reshape(-1, *cache.shape[2:])[:total]
    return torch.where(mapped[:, None, None], tokens, 0.0), mapped


def visibility(positions: Tensor, mapped: Tensor, local_window_size: int, sink_size: int) -> Tensor:
    """Which cached token each query sees, bool [queries, total]: causal, window, sinks, mapped."""
    distance = positions[:, None] - torch.arange(len(mapped))[None]
    visible = distance >= 0
    if local_window_size >= 0:
        in_window = distance < local_window_size
        is_sink = (torch.arange(len(mapped)) < sink_size)[None]
        visible = visible & (in_window | is_sink)
    return visible & mapped[None]


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor,
    *,
    scale: float,
    softcap: float,
    head_sink: Tensor | None,
) -> Tensor:
    """Softmax attention of one sequence [queries, heads, d]; a learned sink joins the denominator only.

    A query that sees no key gives zeros.
    """
    repeats = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    logits = torch.einsum("qhd,khd->hqk", query.float(), keys) * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~visible, -torch.inf)
    if head_sink is not None:
        sink = head_sink.float()[:, None, None].expand(-1, logits.shape[1], 1)
        weights = torch.cat([logits, sink], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = torch.where(visible.any(-1, keepdim=True), logits.softmax(-1), 0.0)
    return torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype)
