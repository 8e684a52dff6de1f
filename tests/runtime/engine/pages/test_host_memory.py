"""What a CPU's pools take of the machine: nothing for addresses, a slab's memory until it is given back."""

from __future__ import annotations

import gc
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from kvfold.plugins.contract.errors import CapacityError
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan
from kvfold.runtime.engine.host_pages import HostPages
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.engine.slabs import address_pages, slab_pages
from tests.runtime.engine.pages.mixed_plan import GROUPS, PLAN, make_info

MIB = 1 << 20
# Pages of 2 KiB in each of 4 pools.
BIG = FoldPlan(
    num_attention_heads=2,
    head_dim=64,
    layers=tuple(LayerPlan(donor=layer, num_key_value_heads=2, kv_dtype="int8") for layer in (0, 1)),
)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="would show what Linux gives back")


def resident() -> int:
    """Bytes of this process in memory, without what other tests left to be collected."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def big_store(budget: int) -> tuple[EngineInfo, HostPages]:
    slabs = slab_pages(BIG, mmap.PAGESIZE)
    info = EngineInfo(BIG, budget, address_pages(BIG, budget, slabs), slabs, 97, 512, "big")
    return info, HostPages(info)


def fill(store: HostPages, pages: np.ndarray) -> None:
    store.copy_in("global", pages, np.full((len(pages), 8192), 1, np.uint8))


@linux_only
def test_addresses_cost_nothing_and_a_decommit_gives_the_memory_back() -> None:
    start = resident()
    info, store = big_store(16 << 30)
    assert resident() - start < 4 * MIB, "16 GiB of addresses"
    slab = info.slab_pages["global"]
    store.commit("global", range(64 * MIB // (8192 * slab)))
    fill(store, np.arange(64 * MIB // 8192))
    full = resident()
    assert full - start > 60 * MIB
    store.decommit("global", range(0, 48 * MIB // (8192 * slab)))
    kept = resident()
    assert 44 * MIB < full - kept < 52 * MIB
    rest = np.empty((16, 8192), np.uint8)
    store.copy_out("global", np.arange(64 * MIB // 8192)[-16:], rest)
    assert (rest == 1).all(), "slabs that stay"


@linux_only
def test_a_page_takes_no_more_memory_than_the_slabs_around_it() -> None:
    info, store = big_store(1 << 30)
    start = resident()
    far_apart = np.arange(0, info.num_pages["global"], info.num_pages["global"] // 64)[:64]
    store.commit("global", sorted({int(page) // info.slab_pages["global"] for page in far_apart}))
    fill(store, far_apart)
    # 64 pages in 4 pools: 1 MiB in pages of the system, 512 MiB in huge ones.
    assert resident() - start < 8 * MIB


def test_elsewhere_than_on_linux_a_decommit_writes_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    info, store = big_store(8 * MIB)
    slab = info.slab_pages["global"]
    store.commit("global", [0, 1])
    fill(store, np.arange(2 * slab))
    store.decommit("global", [1])
    found = np.empty((2 * slab, 8192), np.uint8)
    store.copy_out("global", np.arange(2 * slab), found)
    assert (found[:slab] == 1).all() and not found[slab:].any()


def test_addresses_that_the_system_refuses_are_a_typed_error() -> None:
    with pytest.raises(CapacityError, match=r"refused \d+ bytes of addresses .*; lower kv_cache_bytes"):
        big_store(1 << 50)


@pytest.mark.parametrize("unit", [4096, 16384, 2 * MIB])
def test_a_slab_is_the_fewest_pages_that_fill_whole_units(unit: int) -> None:
    slabs = slab_pages(PLAN, unit)
    for group in PLAN.groups:
        sizes = [bank.bytes_per_token // 2 * PLAN.page_size for bank in group.banks]
        fits = (n for n in range(1, unit + 1) if all(n * size % unit == 0 for size in sizes))
        assert slabs[group.name] == next(fits)


def test_addresses_are_for_the_whole_budget_in_every_group() -> None:
    info = make_info(4096, slabs_of_each=5)
    for group in PLAN.groups:
        size = group.page_bytes(PLAN.page_size)
        slab = info.slab_pages[group.name]
        assert info.num_pages[group.name] % slab == 0
        assert info.num_pages[group.name] * size <= info.kv_cache_bytes
        assert (info.num_pages[group.name] + slab) * size > info.kv_cache_bytes
    assert address_pages(PLAN, 1, info.slab_pages) == info.slab_pages, "one slab at least"
    least = dict.fromkeys(GROUPS, 3)
    assert address_pages(PLAN, 1 << 30, dict.fromkeys(GROUPS, 2), least) == dict.fromkeys(GROUPS, 2)
