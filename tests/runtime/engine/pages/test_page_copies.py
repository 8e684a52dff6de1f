"""Copies are exact in every store, for every type and shape of cache, against a reference page by page."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.host_pages import HostPages
from kvfold.runtime.engine.protocol import EngineInfo, PageStore
from kvfold.runtime.engine.slabs import GPU_UNIT, runs
from tests.runtime.engine.pages.mixed_plan import GROUPS, PLAN, group_pools, make_info, page_bytes, scribble
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver

Store = HostPages | DevicePages
SIZES = {group.name: group.page_bytes(PLAN.page_size) for group in PLAN.groups}


def on_host() -> tuple[EngineInfo, Store]:
    info = make_info(mmap.PAGESIZE)
    return info, HostPages(info)


def on_device() -> tuple[EngineInfo, Store]:
    info = make_info(GPU_UNIT)
    return info, DevicePages(Device(StandInDriver()), info)


@pytest.fixture(params=[on_host, on_device])
def opened(request: pytest.FixtureRequest) -> tuple[EngineInfo, Store]:
    """A store whose slabs 1 and 2 are committed in every group."""
    made: tuple[EngineInfo, Store] = request.param()
    for group in GROUPS:
        made[1].commit(group, [1, 2])
    return made


def pages_around_the_border(info: EngineInfo, group: str) -> list[int]:
    """Of slabs 1 and 2: some from where they meet, their first and their last."""
    slab = info.slab_pages[group]
    return [slab, slab + 1, slab + 2, *range(2 * slab - 3, 2 * slab + 3), 3 * slab - 2, 3 * slab - 1]


@pytest.mark.parametrize("group", GROUPS)
def test_copies_out_and_in_are_exact(opened: tuple[EngineInfo, Store], group: str) -> None:
    info, store = opened
    rng, pages = np.random.default_rng(3), pages_around_the_border(info, group)
    pools = group_pools(store.pools, group)
    scribble(pools, pages, rng)
    before = {page: page_bytes(pools, page) for page in pages}
    for count in (1, 4, len(pages)):
        chosen = rng.permutation(pages)[:count]
        buffer = np.empty((count, SIZES[group]), np.uint8)
        store.copy_out(group, chosen, buffer)
        assert [row.tobytes() for row in buffer] == [before[page] for page in chosen.tolist()]

        written = rng.integers(0, 256, buffer.shape, np.uint8)
        store.copy_in(group, chosen, written)
        changed = dict(zip(chosen.tolist(), (row.tobytes() for row in written), strict=True))
        before |= changed
        assert {page: page_bytes(pools, page) for page in pages} == before


@pytest.mark.parametrize("group", GROUPS)
def test_moves_are_exact(opened: tuple[EngineInfo, Store], group: str) -> None:
    info, store = opened
    rng, pages = np.random.default_rng(4), pages_around_the_border(info, group)
    pools = group_pools(store.pools, group)
    scribble(pools, pages, rng)
    expected = {page: page_bytes(pools, page) for page in pages}
    slab = info.slab_pages[group]
    runs_of_two = [slab, slab + 1, slab + 2], [2 * slab, 2 * slab + 1, 2 * slab + 2]
    shuffled = rng.permutation(pages)
    for sources, targets in (runs_of_two, (shuffled[:5].tolist(), shuffled[5:10].tolist())):
        store.move(group, np.asarray(sources), np.asarray(targets))
        expected |= {target: expected[source] for source, target in zip(sources, targets, strict=True)}
        assert {page: page_bytes(pools, page) for page in pages} == expected


def test_groups_keep_out_of_each_other(opened: tuple[EngineInfo, Store]) -> None:
    info, store = opened
    for seed, group in enumerate(GROUPS):
        pages = np.arange(info.slab_pages[group], 3 * info.slab_pages[group])[:40]
        buffer = np.random.default_rng(seed).integers(0, 256, (len(pages), SIZES[group]), np.uint8)
        store.copy_in(group, pages, buffer)
    for seed, group in enumerate(GROUPS):
        pages = np.arange(info.slab_pages[group], 3 * info.slab_pages[group])[:40]
        found = np.empty((len(pages), SIZES[group]), np.uint8)
        store.copy_out(group, pages, found)
        assert np.array_equal(found, np.random.default_rng(seed).integers(0, 256, found.shape, np.uint8))


def test_a_slab_that_comes_back_is_zero_and_others_are_untouched(opened: tuple[EngineInfo, Store]) -> None:
    info, store = opened
    for group in GROUPS:
        slab, pools = info.slab_pages[group], group_pools(store.pools, group)
        ends = [slab, 2 * slab - 1, 2 * slab, 3 * slab - 1]
        scribble(pools, ends, np.random.default_rng(5))
        kept = [page_bytes(pools, page) for page in ends[2:]]
        store.decommit(group, [0, 1])  # slab 0 has no memory, which does no harm
        store.commit(group, [0, 1])
        buffer = np.full((slab * 2, SIZES[group]), 7, np.uint8)[:200]
        store.copy_out(group, np.arange(2 * slab)[-200:], buffer)
        assert not buffer.any()
        assert not any(map(any, (page_bytes(pools, page) for page in (0, slab - 1, slab, 2 * slab - 1))))
        assert [page_bytes(pools, page) for page in ends[2:]] == kept


def test_a_new_owner_begins_with_a_decommit_of_everything(opened: tuple[EngineInfo, Store]) -> None:
    info, store = opened
    for group in GROUPS:
        pools = group_pools(store.pools, group)
        scribble(pools, [info.slab_pages[group]], np.random.default_rng(6))
        every = range(info.num_pages[group] // info.slab_pages[group])
        protocol: PageStore = store
        protocol.decommit(group, every)
        protocol.commit(group, every[:2])
        assert not any(page_bytes(pools, info.slab_pages[group]))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_runs_cut_parallel_arrays_where_one_does_not_count_up(pairs: list[tuple[int, int]]) -> None:
    columns = np.asarray(pairs, np.int64).reshape(-1, 2).T
    found = list(runs(*columns))
    assert [index for run in found for index in range(run.start, run.stop)] == list(range(len(pairs)))
    starts = {run.start for run in found}
    for index in range(1, len(pairs)):
        counts_up = all(pairs[index][side] == pairs[index - 1][side] + 1 for side in (0, 1))
        assert (index in starts) != counts_up
