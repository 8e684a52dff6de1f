"""A case in a process of its own: one that faults, crashes or hangs is replaced, and the error is told."""

from __future__ import annotations

import os
import time

import numpy as np
import psutil
import pytest

from kvfold.pipeline.build.tuning.case_process import CaseProcess
from kvfold.pipeline.build.tuning.tune_kernels import Broke, CaseOnGpu, Timed
from kvfold.pipeline.build.tuning.tuning_cases import TuningCase, tuning_cases
from kvfold.plugins.contract.errors import CapacityError, TargetError
from kvfold.plugins.cuda.compile_kernels import Cubin
from tests.pipeline.build.tuning.test_tune_kernels import cubin_of

CASE = tuning_cases()[0]
FAULT, CRASH, HANG = range(3)


class OnStandIn:
    """A GPU that refuses everything once a kernel has faulted, as the driver does to a process."""

    def __init__(self) -> None:
        self._fault = ""

    def time(self, cubin: Cubin) -> Timed:
        if cubin.kernel.registers == CRASH:
            os._exit(11)
        if cubin.kernel.registers == HANG:
            time.sleep(600)
        if cubin.kernel.registers == FAULT:
            self._fault = "CUDA_ERROR_ILLEGAL_ADDRESS"
        if self._fault:
            raise TargetError(self._fault)
        return Timed(float(os.getpid()), np.ones(3))


def opens(case: TuningCase) -> CaseOnGpu:
    assert case == CASE
    return OnStandIn()


def has_no_room(case: TuningCase) -> CaseOnGpu:
    raise CapacityError("no memory for the caches")


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (FAULT, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (CRASH, "its process ended with 11"),
        (HANG, "it did not end in 2 s"),
    ],
)
def test_another_process_goes_on(broken: int, error: str) -> None:
    case = CaseProcess(CASE, opens, patience=2.0 if broken == HANG else 60.0)
    before = timed_by(case)
    assert timed_by(case) == before
    assert case.time(cubin_of(CASE.variant, broken)) == Broke(error)
    after = timed_by(case)
    assert after != before and not psutil.pid_exists(before)
    case.close()
    assert not psutil.pid_exists(after)


def timed_by(case: CaseProcess) -> int:
    """The process that timed."""
    timed = case.time(cubin_of(CASE.variant, 99))
    assert isinstance(timed, Timed) and timed.output.shape == (3,)
    return int(timed.seconds)


def test_a_case_that_cannot_be_opened_is_an_error() -> None:
    with pytest.raises(CapacityError, match="no memory for the caches"):
        CaseProcess(CASE, has_no_room)
