"""What compiles for the GPU, with compilers that end in ways of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from kvfold.pipeline.build.tuning import tuning_gpu
from kvfold.pipeline.build.tuning.tuning_cases import tuning_cases
from kvfold.pipeline.build.tuning.tuning_gpu import TuningGpu
from kvfold.plugins.cuda.attention_spec import Variant
from kvfold.plugins.cuda.compile_kernels import Cubin
from kvfold.plugins.cuda.tuning import Tuning
from tests.pipeline.build.tuning.test_tune_kernels import cubin_of
from tests.runtime.engine.tensorrt.cuda_stand_in import StandInDriver

CASE = tuning_cases()[0]
WAYS = [Tuning(warps, 2) for warps in range(8)]
ABORTS = 3


def aborts(variant: Variant, architecture: int, way: Tuning) -> Cubin | None:
    """As LLVM does where it meets what it holds for impossible."""
    if way.num_warps == ABORTS:
        os.abort()
    return cubin_of(variant, way.num_warps)


def sleeps(variant: Variant, architecture: int, way: Tuning) -> Cubin | None:
    time.sleep(600)
    return None


def stand_in_bench(
    compiles: Callable[[Variant, int, Tuning], Cubin | None], patch: pytest.MonkeyPatch
) -> TuningGpu:
    """On the stand-in driver, with another compiler."""
    patch.setattr(tuning_gpu, "load_driver", lambda: StandInDriver(architecture=90))
    patch.setattr(tuning_gpu, "compile_way", compiles)
    patch.setattr(os, "cpu_count", lambda: 2)
    return TuningGpu()


def test_a_way_that_ends_its_compiler_does_not_compile_and_the_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stand_in_bench(aborts, monkeypatch) as bench:
        assert (bench.card, bench.architecture) == ("Stand-in GPU", 90)
        for _ in range(2):
            cubins = list(bench.compile(CASE, WAYS))
            found = [cubin.kernel.registers if cubin else None for cubin in cubins]
            assert found == [0, 1, 2, None, 4, 5, 6, 7]
