"""Random but valid PagedAttention inputs, as numpy arrays, for the parity test of every backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfold.plugins.paged_attention.schema import Attributes, QuantType


@dataclass(frozen=True)
class Case:
    """What to generate.

    Attributes:
        new_lengths: new tokens of each sequence (0 is allowed).
        past_lengths: tokens of each sequence already in the cache.
        spare_pages: pages of the pool that belong to nobody.
        scale: on q.k; None is head_size ** -0.5.
        freed: drop pages that no query can see from the block table (-1), as the runtime does.
        writes: False makes a consumer: every slot is -1 and the cache already holds the tokens.
    """

    new_lengths: tuple[int, ...]
    past_lengths: tuple[int, ...]
    num_heads: int = 4
    kv_num_heads: int = 2
    head_size: int = 64
    page_size: int = 16
    local_window_size: int = -1
    sink_size: int = 0
    scale: float | None = None
    softcap: float = 0.0
    int8_cache: bool = False
    head_sink: bool = False
    qk_norm: bool = False
    packed: bool = True
    writes: bool = True
    freed: bool = True
    spare_pages: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """Arrays by schema input name (absent optional inputs are missing) and the node's attributes."""

    arrays: dict[str, np.ndarray]
    attributes: Attributes


def make_inputs(case: Case) -> Inputs:
    """Arrays for one case; the same case always gives the same arrays."""
    rng = np.random.default_rng(case.seed)
    arrays = _activations(case, rng) | _tables(case, rng)
    pages = int(arrays.pop("num_pages")[0])
    arrays |= _caches(case, rng, pages) | _rotary_tables(case)
    if case.head_sink:
        arrays["head_sink"] = _normal(rng, case.num_heads)
    if case.qk_norm:
        arrays["q_norm_weight"] = rng.uniform(0.5, 1.5, case.head_size).astype(np.float32)
        arrays["k_norm_weight"] = rng.uniform(0.5, 1.5, case.head_size).astype(np.float32)
    quant_type: QuantType = "PER_CHANNEL" if case.int8_cache else "NONE"
    attributes = Attributes(
        num_heads=case.num_heads,
        kv_num_heads=case.kv_num_heads,
        scale=case.head_size**-0.5 if case.scale is None else case.scale,
        softcap=case.softcap,
        local_window_size=case.local_window_size,
        sink_size=case.sink_size,
        k_quant_type=quant_type,
        v_quant_type=quant_type,
    )
    return Inputs(arrays, attributes)


def _activations(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    tokens, kv_width = sum(case.new_lengths), case.kv_num_heads * case.head_size
    query = _normal(rng, tokens, case.num_heads * case.head_size)
    key, value = _normal(rng, tokens, kv_width), _normal(rng, tokens, kv_width)
    if case.packed:
        return {"query": np.concatenate([query, key, value], axis=1)}
    return {"query": query, "key": key, "value": value}


def _caches(case: Case, rng: np.random.Generator, pages: int) -> dict[str, np.ndarray]:
    """Both pools, and their scales where they are int8."""
    shape = (pages, case.page_size, case.kv_num_heads, case.head_size)
    if not case.int8_cache:
        return {name: _normal(rng, *shape) for name in ("key_cache", "value_cache")}
    pools = {name: rng.integers(-127, 128, shape, dtype=np.int8) for name in ("key_cache", "value_cache")}
    scale_shape = (case.kv_num_heads, 1, case.head_size)
    scales = {
        name: rng.uniform(0.01, 0.04, scale_shape).astype(np.float32) for name in ("k_scale", "v_scale")
    }
    return pools | scales


def _rotary_tables(case: Case) -> dict[str, np.ndarray]:
    """Cosines and sines of every position of the longest sequence."""
    totals = (past + new for past, new in zip(case.past_lengths, case.new_lengths, strict=True))
    positions = np.arange(max(totals, default=0) or 1)
    angles = np.outer(positions, 10_000.0 ** -(np.arange(case.head_size // 2) * 2 / case.head_size))
    return {"cos_cache": np.cos(angles).astype(np.float32), "sin_cache": np.sin(angles).astype(np.float32)}


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _tables(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Block table, slot mapping and lengths over a shuffled page pool."""
    size = case.page_size
    totals = [p + n for p, n in zip(case.past_lengths, case.new_lengths, strict=True)]
    counts = [-(-total // size) for total in totals]
    num_pages = sum(counts) + case.spare_pages
    ids = rng.permutation(num_pages).astype(np.int32)
    table = np.full((len(totals), max(counts, default=0) + 1), -1, dtype=np.int32)
    slots = [np.empty(0, dtype=np.int64)]
    for row, (past, total, count) in enumerate(zip(case.past_lengths, totals, counts, strict=True)):
        table[row, :count], ids = ids[:count], ids[count:]
        positions = np.arange(past, total)
        slots.append(table[row, positions // size] * size + positions % size)
        if case.freed and case.local_window_size >= 0:
            first_visible = max(0, past - case.local_window_size + 1) // size
            sink_pages = -(-case.sink_size // size)
            table[row, sink_pages:first_visible] = -1
    slot_mapping = np.concatenate(slots).astype(np.int32)
    return {
        "block_table": table,
        "slot_mapping": slot_mapping if case.writes else np.full_like(slot_mapping, -1),
        "cumulative_sequence_length": np.cumsum([0, *case.new_lengths]).astype(np.int32),
        "past_seqlens": np.asarray(case.past_lengths, dtype=np.int32),
        "num_pages": np.asarray([num_pages]),
    }
