"""Page pools in a real driver's virtual memory: copies, zeros, and what is given back."""

from __future__ import annotations

import numpy as np

from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.slabs import GPU_UNIT
from tests.gpu.conftest import RecordProperty
from tests.gpu.runs.find_gpu import GpuFacts
from tests.runtime.engine.pages.mixed_plan import GROUPS, PLAN, make_info

INFO = make_info(GPU_UNIT)
SIZES = {group.name: group.page_bytes(PLAN.page_size) for group in PLAN.groups}


def test_pages_make_the_round_trip_across_slabs(gpu: GpuFacts, device: Device) -> None:
    """Committed pages are zero; what is copied in comes out, and moves, also where two slabs meet."""
    store = DevicePages(device, INFO)
    for group in GROUPS:
        slab = INFO.slab_pages[group]
        store.commit(group, [0, 1])
        pages = np.asarray([5, *range(slab - 3, slab + 3), 2 * slab - 1])
        found = np.full((len(pages), SIZES[group]), 7, np.uint8)
        store.copy_out(group, pages, found)
        assert not found.any()
        written = np.random.default_rng(1).integers(0, 256, found.shape, np.uint8)
        store.copy_in(group, pages, written)
        store.move(group, pages, pages + np.asarray([10, *[20] * 6, -20]))
        store.copy_out(group, pages + np.asarray([10, *[20] * 6, -20]), found)
        np.testing.assert_array_equal(found, written)
        store.decommit(group, [1])
        store.commit(group, [1])
        store.copy_out(group, pages, found)
        np.testing.assert_array_equal(found[:4], written[:4])
        assert not found[4:].any()


def test_a_decommit_gives_memory_back(gpu: GpuFacts, device: Device, record_property: RecordProperty) -> None:
    """Addresses cost little; a slab costs what it has, and nothing any more once it is decommitted."""
    before = device.free_bytes()
    store = DevicePages(device, INFO)
    reserved = before - device.free_bytes()
    slabs = sum(INFO.slab_pages[group] * SIZES[group] for group in GROUPS)
    for group in GROUPS:
        store.commit(group, [0, 1, 2])
    committed = before - device.free_bytes() - reserved
    for group in GROUPS:
        store.decommit(group, [0, 1, 2])
    kept = before - device.free_bytes() - reserved
    record_property("bytes taken by addresses", reserved)
    record_property("bytes kept after a decommit of all", kept)
    assert committed >= 3 * slabs
    assert reserved < slabs and kept < slabs
