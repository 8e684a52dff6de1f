"""A case on the stand-in driver: what is launched, over which memory, and what is timed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from kvfold.pipeline.build.tuning.device_case import COMPARED, SAMPLES, DeviceCase
from kvfold.pipeline.build.tuning.tuning_cases import TuningCase, tuning_cases
from kvfold.plugins.cuda.compile_kernels import Cubin, compile_variant
from kvfold.runtime.engine.cuda.device import Device
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver

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
