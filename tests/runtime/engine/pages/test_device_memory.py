"""A GPU's pools over the stand-in driver: which calls in which order, and nothing left behind by an error."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvfold.plugins.contract.errors import CapacityError, TargetError
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.slabs import GPU_UNIT
from tests.runtime.engine.pages.mixed_plan import GROUPS, PLAN, make_info
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver, Status

INFO = make_info(GPU_UNIT)
SLAB_BYTES = {g.name: INFO.slab_pages[g.name] * g.page_bytes(PLAN.page_size) for g in PLAN.groups}
POOLS = {group.name: 2 * len(group.banks) for group in PLAN.groups}
LOCAL = "window32_sink0"


def open_store(total: int = 1 << 30) -> tuple[StandInDriver, Device, DevicePages]:
    driver = StandInDriver(total=total)
    device = Device(driver)
    store = DevicePages(device, INFO)
    driver.calls.clear()
    return driver, device, store


def without_context(driver: StandInDriver) -> list[str]:
    return [name for name in driver.calls if name != "cuCtxSetCurrent"]


def test_addresses_take_no_memory_and_commits_take_what_a_slab_has() -> None:
    driver, _, store = open_store()
    assert driver.used == 0
    store.commit("global", [0])
    assert driver.used == SLAB_BYTES["global"]
    store.commit(LOCAL, [2, 0])
    assert driver.used == SLAB_BYTES["global"] + 2 * SLAB_BYTES[LOCAL]
    store.decommit(LOCAL, [0, 1])
    assert driver.used == SLAB_BYTES["global"] + SLAB_BYTES[LOCAL]
    assert not driver.handles, "a handle would keep the memory of what is decommitted"


def test_a_commit_maps_each_pool_then_waits_once() -> None:
    driver, _, store = open_store()
    store.commit("global", [1])
    a_pool = ["cuMemCreate", "cuMemMap", "cuMemRelease", "cuMemSetAccess", "cuMemsetD8Async"]
    assert without_context(driver) == a_pool * POOLS["global"] + ["cuStreamSynchronize"]
    driver.calls.clear()
    store.decommit("global", [1])
    waits_first = ["cuStreamSynchronize"]  # for the step that may be reading them
    assert without_context(driver) == waits_first + ["cuMemUnmap"] * POOLS["global"]


def test_a_copy_is_a_call_for_each_run_and_pool_then_one_wait() -> None:
    driver, _, store = open_store()
    store.commit("global", [0])
    driver.calls.clear()
    buffer = np.empty((5, SLAB_BYTES["global"] // INFO.slab_pages["global"]), np.uint8)
    store.copy_out("global", np.asarray([7, 8, 9, 2, 3]), buffer)
    assert without_context(driver) == ["cuMemcpy2DAsync"] * 2 * POOLS["global"] + ["cuStreamSynchronize"]
    driver.calls.clear()
    store.move("global", np.asarray([1, 2, 3]), np.asarray([11, 12, 14]))
    assert without_context(driver) == ["cuMemcpyDtoDAsync"] * 2 * POOLS["global"] + ["cuStreamSynchronize"]


@pytest.mark.parametrize("function", ["cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemsetD8Async"])
def test_a_commit_that_fails_in_its_middle_leaves_nothing(function: str) -> None:
    driver, device, store = open_store()
    store.commit("global", [0])
    calls = {"left": 3}
    real = getattr(driver, function)

    def fail_later(*arguments: object) -> tuple[object, ...]:
        calls["left"] -= 1
        return (Status.CUDA_ERROR_ILLEGAL_ADDRESS, None) if calls["left"] < 0 else real(*arguments)

    setattr(driver, function, fail_later)
    with pytest.raises(TargetError, match=f"{function} failed with CUDA_ERROR_ILLEGAL_ADDRESS"):
        store.commit(LOCAL, [0, 1])
    assert driver.used == SLAB_BYTES["global"] and not driver.handles
    device.synchronize()  # no work is left that would write where nothing is
    setattr(driver, function, real)
    store.commit(LOCAL, [0, 1])
    assert driver.used == SLAB_BYTES["global"] + 2 * SLAB_BYTES[LOCAL]


def test_memory_that_others_took_is_a_capacity_error_and_leaves_nothing() -> None:
    driver, _, store = open_store(total=SLAB_BYTES["global"] + SLAB_BYTES[LOCAL] // 2)
    store.commit("global", [0])
    with pytest.raises(
        CapacityError, match=r"cuMemCreate .* no memory left: end other programs on it, or lower"
    ):
        store.commit(LOCAL, [0])
    assert driver.used == SLAB_BYTES["global"] and not driver.handles


def test_closing_the_device_unmaps_before_it_frees_the_addresses() -> None:
    driver, device, store = open_store()
    for group in GROUPS:
        store.commit(group, [0, 2])
    driver.calls.clear()
    device.close()
    assert driver.used == 0 and not driver.reserved and not driver.mapped
    assert driver.count("cuMemUnmap") == 2 * sum(POOLS.values())
    assert driver.count("cuMemAddressFree") == sum(POOLS.values())
    assert driver.calls[-2:] == ["cuStreamDestroy", "cuDevicePrimaryCtxRelease"]


def test_pages_may_be_moved_by_another_thread_than_the_one_that_opened_the_gpu() -> None:
    _, _, store = open_store()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(store.commit, "global", [0]).result()
        thread.submit(store.move, "global", np.asarray([0]), np.asarray([1])).result()
        thread.submit(store.decommit, "global", [0]).result()


def test_a_gpu_without_virtual_memory_is_refused() -> None:
    driver = StandInDriver()
    driver.manages_addresses = 0
    with pytest.raises(TargetError, match="no virtual memory management under this driver"):
        DevicePages(Device(driver), INFO)


def test_a_gpu_that_gives_memory_by_larger_pieces_is_refused() -> None:
    driver = StandInDriver()
    driver.granularity = 2 * GPU_UNIT
    with pytest.raises(TargetError, match=r"gives memory by 4194304 bytes, kvfold asks for .* 2097152"):
        DevicePages(Device(driver), INFO)
