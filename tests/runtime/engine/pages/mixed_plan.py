"""A plan with every type of cache, odd numbers of heads and several banks a group; its pages byte by byte."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np

from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan
from kvfold.runtime.engine.kv_pools import KvPool
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.engine.slabs import address_pages, slab_pages

# Donor, heads, window, type; layer 2 reads the cache of layer 0.
LAYERS: tuple[tuple[int, int, int | None, Any], ...] = (
    (0, 3, None, "int8"),
    (1, 1, 32, "float16"),
    (0, 3, None, "int8"),
    (3, 2, 32, "int8"),
    (4, 3, None, "float32"),
    (5, 6, 64, "bfloat16"),
    (6, 3, 32, "bfloat16"),
)
PLAN = FoldPlan(
    num_attention_heads=6,
    head_dim=8,
    layers=tuple(
        LayerPlan(donor=donor, num_key_value_heads=heads, sliding_window=window, kv_dtype=dtype)
        for donor, heads, window, dtype in LAYERS
    ),
)
GROUPS = [group.name for group in PLAN.groups]


def make_info(unit: int, slabs_of_each: int = 3) -> EngineInfo:
    """Three groups that share the memory of so many slabs of each."""
    slabs, size = slab_pages(PLAN, unit), PLAN.page_size
    budget = slabs_of_each * sum(slabs[group.name] * group.page_bytes(size) for group in PLAN.groups)
    return EngineInfo(PLAN, budget, address_pages(PLAN, budget, slabs), slabs, 97, 512, "mixed")


def group_pools(pools: Iterable[tuple[KvPool, int]], group: str) -> list[tuple[KvPool, int]]:
    """The pools of one group, in order."""
    return [(pool, address) for pool, address in pools if pool.group == group]


def page_bytes(pools: Iterable[tuple[KvPool, int]], page: int) -> bytes:
    """A page by definition: keys, then values, of one bank after the other."""
    return b"".join(
        ctypes.string_at(address + page * pool.page_bytes, pool.page_bytes) for pool, address in pools
    )


def scribble(pools: Iterable[tuple[KvPool, int]], pages: Iterable[int], rng: np.random.Generator) -> None:
    """Fill pages with random bytes."""
    ids = list(pages)
    for pool, address in pools:
        for page in ids:
            ctypes.memmove(address + page * pool.page_bytes, rng.bytes(pool.page_bytes), pool.page_bytes)
