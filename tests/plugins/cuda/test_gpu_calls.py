"""How the tests on a GPU launch a kernel, over a stand-in of the driver."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from kvfold.plugins.cuda.calls import Launch, resolve
from kvfold.plugins.cuda.launches import Shapes
from kvfold.runtime.engine.cuda.device import Device
from tests.gpu.attention_call import C_TYPES, SCRATCH, STATIC_SHARED_BYTES, launch
from tests.plugins.cuda.fake_kernels import fake_kernels
from tests.plugins.tensorrt.attention_models import PRODUCER, SPEC
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver

BUFFERS = {name: (index + 1) << 36 for index, name in enumerate((*PRODUCER.inputs, "output"))}
Given = tuple[tuple[int, int, int], list[float]]


def recorder(call: Launch, given: list[Given]) -> Callable[[tuple[int, int, int], int], Callable[[], None]]:
    """A kernel that writes down what it is launched with."""
    types = [C_TYPES[kind] for kind, _ in (*call.arguments, *SCRATCH)]

    def kernel(grid: tuple[int, int, int], parameters: int) -> Callable[[], None]:
        pointers = (ctypes.c_void_p * len(types)).from_address(parameters)
        values = [
            kind.from_address(pointer or 0).value for kind, pointer in zip(types, pointers, strict=True)
        ]
        given.append((grid, [value or 0 for value in values]))
        return lambda: None

    return kernel


def test_a_call_has_its_grid_and_its_values(tmp_path: Path) -> None:
    library = fake_kernels((SPEC,), (80,), tmp_path)
    calls = resolve(library, 80, SPEC, Shapes(5, 5, 12), BUFFERS, 1 << 40)
    small = [each for each in calls if each.kernel.shared_bytes <= STATIC_SHARED_BYTES]
    assert [each.kernel.symbol for each in small] == ["append", "merge"]
    driver, given = StandInDriver(), list[Given]()
    driver.kernels = {each.kernel.symbol: recorder(each, given) for each in small}
    device = Device(driver)
    for each in small:
        launch(device, tmp_path, each)
    for each, (grid, values) in zip(small, given, strict=True):
        assert grid == each.grid
        assert values == pytest.approx([*(value for _, value in each.arguments), 0, 0], rel=1e-7)
