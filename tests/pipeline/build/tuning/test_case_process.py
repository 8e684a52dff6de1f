"""A case in a process of its own: one that faults, crashes or hangs is replaced, and the error is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from kvfold.pipeline.build.tuning.case_process import CaseProcess
from kvfold.pipeline.build.tuning.tune_kernels import Broke, CaseOnGpu, Timed
from kvfold.pipeline.build.tuning.tuning_cases import TuningCase, tuning_cases
from kvfold.plugins.contract.errors import CapacityError, TargetError
from kvfold.plugins.cuda.compile_kernels import Cubin
from tests.pipeline.build.tuning.test_tune_kernels import cubin_of
from tests.root import ROOT

CASE = tuning_cases()[0]
FAULT, CRASH, HANG, REFUSED, NO_ROOM = range(5)


class OnStandIn:
    """A GPU that refuses everything once a kernel has faulted, as the driver does to a process."""

    def __init__(self) -> None:
        self._fault = ""

    def time(self, cubin: Cubin) -> Timed | None:
        if cubin.kernel.registers == REFUSED:
            return None
        if cubin.kernel.registers == NO_ROOM:
            raise CapacityError("no memory for its code")
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
    assert not psutil.pid_exists(before)
    after = timed_by(case)
    assert after != before
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


def test_errors_that_break_nothing_are_not_said_to() -> None:
    case = CaseProcess(CASE, opens)
    before = timed_by(case)
    assert case.time(cubin_of(CASE.variant, REFUSED)) is None
    with pytest.raises(CapacityError, match="no memory for its code"):
        case.time(cubin_of(CASE.variant, NO_ROOM))
    assert timed_by(case) == before
    case.close()


class OpensOnce:
    """Where a GPU is lost for good with the first process that opens it."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks

    def __call__(self, case: TuningCase) -> CaseOnGpu:
        try:
            self._marks.mkdir()
        except FileExistsError:
            raise TargetError("the driver sees no GPU") from None
        return OnStandIn()


def test_what_broke_the_gpu_is_told_before_another_process_is_tried(tmp_path: Path) -> None:
    case = CaseProcess(CASE, OpensOnce(tmp_path / "opened"))
    assert case.time(cubin_of(CASE.variant, CRASH)) == Broke("its process ended with 11")
    with pytest.raises(TargetError, match="the driver sees no GPU"):
        case.time(cubin_of(CASE.variant, 99))
    case.close()


def never_opens(case: TuningCase) -> CaseOnGpu:
    time.sleep(600)
    raise AssertionError("it was ended before")


def test_a_gpu_that_does_not_open_ends_the_wait() -> None:
    with pytest.raises(
        TargetError, match=r"did not end in 2 s; look at `nvidia-smi`.*run `kvfold tune` again"
    ):
        CaseProcess(CASE, never_opens, opening=2.0)


HANGING = """
from tests.pipeline.build.tuning.test_case_process import *
case = CaseProcess(CASE, opens, patience=600.0)
print("ready", flush=True)
case.time(cubin_of(CASE.variant, HANG))
"""
COMPILING = """
import time
from tests.pipeline.build.tuning.test_tuning_gpu import *
bench = stand_in_bench(sleeps, pytest.MonkeyPatch())
bench._pool.submit(int).result()
print("ready", flush=True)
list(bench.compile(CASE, WAYS))
"""


@pytest.mark.parametrize("script", [HANGING, COMPILING], ids=["a case", "compilers"])
def test_processes_end_when_kvfold_tune_is_killed(script: str) -> None:
    """Killed without a chance to clean up: nothing goes on holding the GPU or compiling."""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as tuning:
        assert tuning.stdout is not None and tuning.stdout.readline() == "ready\n"
        children = psutil.Process(tuning.pid).children(recursive=True)
        tuning.kill()
    assert len(children) >= 2  # one of them is Python's own, which looks after leaks
    assert psutil.wait_procs(children, timeout=10)[1] == []
