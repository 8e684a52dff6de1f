"""Slabs: the fewest pages of a group that fill whole units of memory in every pool of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import gcd, lcm
from mmap import PAGESIZE

import numpy as np

from kvfold.plugins.contract.fold_plan import Bank, FoldPlan, HorizonGroup
from kvfold.runtime.engine.engine_config import Backend

# What CUDA's driver says of every GPU so far; `VirtualMemory` checks it.
GPU_UNIT = 2 << 20
# Bytes that the system gives memory by.
UNITS: dict[Backend, int] = {"cpu": PAGESIZE, "cuda": GPU_UNIT, "tensorrt": GPU_UNIT}


def pool_page_bytes(bank: Bank, page_size: int) -> int:
    """Bytes of one page in one pool of a bank: its keys, or its values."""
    return page_size * bank.bytes_per_token // 2


def slab_pages(plan: FoldPlan, unit: int) -> dict[str, int]:
    """Pages of a slab of each group.

    Args:
        plan: of the engine.
        unit: bytes that the system gives memory by: an OS page, a GPU's granularity.

    Example: units of 4096 bytes; 3 int8 heads of 64 channels and pages of 16 tokens are 3072 bytes a pool,
        so 4 pages fill 3 units.
    """
    return {group.name: _slab_of(group, plan.page_size, unit) for group in plan.groups}


def _slab_of(group: HorizonGroup, page_size: int, unit: int) -> int:
    return lcm(*(unit // gcd(unit, pool_page_bytes(bank, page_size)) for bank in group.banks))


def address_pages(
    plan: FoldPlan, kv_cache_bytes: int, slabs: Mapping[str, int], most: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Pages of each group's pool: what the whole budget would buy, in whole slabs; one slab at least.

    Args:
        plan: of the engine.
        kv_cache_bytes: the budget.
        slabs: pages of a slab of each group.
        most: pages of each group that the engine takes; None where it does not say.
    """
    pages = {}
    for group in plan.groups:
        count = kv_cache_bytes // group.page_bytes(plan.page_size)
        if most is not None:
            count = min(count, most[group.name])
        pages[group.name] = max(1, count // slabs[group.name]) * slabs[group.name]
    return pages


def bytes_of_slabs(plan: FoldPlan, pages: Mapping[str, int], slabs: Mapping[str, int]) -> int:
    """Memory that holds so many pages of each group, in whole slabs."""
    return sum(
        -(-pages[group.name] // slabs[group.name]) * slabs[group.name] * group.page_bytes(plan.page_size)
        for group in plan.groups
    )


def runs(*ids: np.ndarray) -> Iterator[slice]:
    """The parts of parallel arrays [n] in which each counts up by one, in order."""
    ends = np.flatnonzero(np.any([np.diff(each) != 1 for each in ids], axis=0)) + 1
    start = 0
    for stop in [*ends.tolist(), len(ids[0])]:
        if stop > start:
            yield slice(start, stop)
        start = stop
