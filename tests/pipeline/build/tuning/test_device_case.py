"""A case on the stand-in driver: what is launched, over which memory, and what is timed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kvfold.pipeline.build.tuning.device_case import COMPARED, SAMPLES, DeviceCase
from kvfold.pipeline.build.tuning.tuning_cases import TuningCase, tuning_cases
from kvfold.plugins.contract.errors import CapacityError, KvfoldError, TargetError
from kvfold.plugins.cuda import tuned_table
from kvfold.plugins.cuda.compile_kernels import Cubin, compile_tuned, compile_variant
from kvfold.plugins.cuda.tuning import rule_of
from kvfold.runtime.engine.cuda.device import Device
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver, Status

SMALL = {"prefill": (1, 0, 40), "decode": (3, 300, 1)}


class Driver(StandInDriver):
    """With events, which say that everything takes two milliseconds, and kernels that fill their output."""

    def __init__(self) -> None:
        super().__init__(architecture=90)
        names = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")
        self.CUfunction_attribute = names
        self.launched: list[tuple[str, tuple[int, int, int], dict[str, int]]] = []

    def teach(self, cubin: Cubin, output: Callable[[dict[str, int]], None]) -> None:
        """What the kernel of a cubin does with its arguments, by name."""

        def work(grid: tuple[int, int, int], parameters: int) -> Callable[[], None]:
            names = cubin.kernel.arguments
            pointers = (ctypes.c_void_p * len(names)).from_address(parameters)
            values = [ctypes.c_int64.from_address(int(pointer or 0)).value for pointer in pointers]
            arguments = dict(zip(names, values, strict=True))
            self.launched.append((cubin.kernel.variant.partition("-")[0], grid, arguments))
            return partial(output, arguments)

        self.kernels[cubin.kernel.symbol] = work

    def _event_create(self, flags: int) -> tuple[int]:
        return (5,)

    def _event_record(self, event: int, stream: int) -> tuple[()]:
        return ()

    def _event_elapsed_time(self, start: int, end: int) -> tuple[float]:
        return (2.0,)

    def _func_set_attribute(self, function: str, attribute: str, value: int) -> tuple[()]:
        return ()


def small(case: TuningCase) -> TuningCase:
    sequences, past, new = SMALL[case.kernel]
    return replace(case, sequences=sequences, past=past, new=new)


@pytest.mark.parametrize(
    "case", [small(case) for case in tuning_cases() if case.width == 64], ids=lambda case: case.name
)
def test_it_times_the_kernel_without_append_over_caches_that_were_filled(case: TuningCase) -> None:
    driver = Driver()
    device = Device(driver)
    cubin = compile_variant(case.variant, 90)
    on_gpu = DeviceCase(device, case)
    elements = case.sequences * case.new * 9 * 64

    def fill(arguments: dict[str, int]) -> None:
        if "output" in arguments:
            ctypes.memmove(arguments["output"], np.full(elements, 3, np.float16).tobytes(), 2 * elements)

    driver.teach(cubin, fill)
    merge = next(each for each in on_gpu._fixed if each.kernel.variant.startswith("merge"))
    driver.teach(merge, fill)
    timed = on_gpu.time(cubin)

    assert timed is not None
    assert timed.seconds == pytest.approx(1e-3)  # two calls in each sample's two milliseconds
    assert timed.output.shape == (min(COMPARED, elements),) and (timed.output == 3).all()
    kernels = ["prefill"] if case.kernel == "prefill" else ["decode", "merge"]
    assert [name for name, _, _ in driver.launched] == kernels * (1 + 2 * SAMPLES)
    _, grid, arguments = driver.launched[0]
    assert grid == ((4, 1, 1) if case.kernel == "prefill" else (3, 1, 2))
    size = 2 if case.spec.cache_dtype == "float16" else 1
    pages = case.sequences * case.shapes.table_width
    cache = np.ctypeslib.as_array(
        (ctypes.c_uint8 * (pages * 16 * 64 * size)).from_address(arguments["key_cache"])
    )
    assert len(np.unique(cache.view(np.float16 if size == 2 else np.int8))) > 200
    table = (ctypes.c_int32 * pages).from_address(arguments["block_table"])
    assert sorted(table) == list(range(pages))
    device.synchronize()
    device.close()
    assert driver.used == 0


def on_stand_in() -> tuple[Driver, DeviceCase, Cubin]:
    """The first case, small, and its kernel as the rule compiles it."""
    driver, case = Driver(), small(tuning_cases()[0])
    on_gpu = DeviceCase(Device(driver), case)
    return driver, on_gpu, compile_tuned(case.variant, 90, rule_of(case.variant, 90))


def test_a_cubin_that_the_gpu_refuses_broke_nothing() -> None:
    driver, on_gpu, cubin = on_stand_in()
    driver.fails["cuLaunchKernel"] = Status.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
    assert on_gpu.time(cubin) is None


@pytest.mark.parametrize(
    ("function", "status", "error"),
    [
        ("cuStreamSynchronize", Status.CUDA_ERROR_ILLEGAL_ADDRESS, TargetError),
        ("cuModuleLoadData", Status.CUDA_ERROR_OUT_OF_MEMORY, CapacityError),
    ],
)
def test_faults_and_a_lack_of_memory_are_errors(
    function: str, status: Status, error: type[KvfoldError]
) -> None:
    driver, on_gpu, cubin = on_stand_in()
    driver.teach(cubin, lambda arguments: None)
    driver.fails[function] = status
    with pytest.raises(error, match=status.name):
        on_gpu.time(cubin)


def test_a_damaged_table_does_not_hinder_the_measurement_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sm90.json").write_text("no table")
    monkeypatch.setattr(tuned_table, "TABLES", tmp_path)
    tuned_table.tuned_table.cache_clear()
    _, on_gpu, _ = on_stand_in()
    assert {each.kernel.variant.partition("-")[0] for each in on_gpu._fixed} == {"append", "decode", "merge"}
