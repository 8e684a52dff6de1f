"""Time ways to compile each kernel until the clock says stop; the fastest of each go into a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from typing import Protocol

import numpy as np

from kvfold.pipeline.build.tuning.tuning_cases import TuningCase
from kvfold.plugins.contract.progress import Progress, part
from kvfold.plugins.cuda.compile_kernels import Cubin
from kvfold.plugins.cuda.tuned_table import Choice, TunedTable
from kvfold.plugins.cuda.tuning import Tuning, candidates_of
from kvfold.plugins.paged_attention.tolerances import OUTPUT

WORTH = 0.98  # of the rule's time: less is noise, and the rule stays
ALLOWED = 2 * OUTPUT["float16"]  # between two ways to compute, each within the op's tolerance


@dataclass(frozen=True)
class Timed:
    """One way to compile, run on the case's inputs.

    Attributes:
        seconds: of a call of the kernel, with what it needs after it; a median.
        output: of the call, float32.
    """

    seconds: float
    output: np.ndarray


class CaseOnGpu(Protocol):
    """The inputs of a case in a GPU's memory."""

    def time(self, cubin: Cubin) -> Timed:
        """Run the case with this cubin of its kernel."""
        ...


class Bench(Protocol):
    """A GPU, and what compiles for it."""

    card: str
    architecture: int
    triton: str

    def compile(self, case: TuningCase, ways: Iterable[Tuning]) -> Iterator[Cubin | None]:
        """Each way's cubin, in order and several at a time; None where it does not fit or spills."""
        ...

    def open(self, case: TuningCase) -> AbstractContextManager[CaseOnGpu]:
        """The case's inputs, for the block."""
        ...


def tune_kernels(
    bench: Bench,
    cases: tuple[TuningCase, ...],
    seconds: float,
    clock: Callable[[], float],
    progress: Progress,
) -> TunedTable:
    """The fastest way found for each case.

    Args:
        bench: the GPU.
        cases: what to time.
        seconds: that it may take; cases share what is left evenly, and each is tried at least as the rule
            compiles it.
        clock: seconds that go by.
        progress: told the fraction of the time, or of the work if that is further.
    """
    start = clock()
    choices = []
    for index, case in enumerate(cases):
        begun = clock() - start
        share = (seconds - begun) / (len(cases) - index)
        told = part(progress, begun / seconds, share / seconds, case.name)
        choices.append(_tune(bench, case, share, clock, told))
    return TunedTable(
        architecture=bench.architecture,
        card=bench.card,
        date=date.today().isoformat(),
        triton=bench.triton,
        choices=tuple(choices),
    )


def _tune(
    bench: Bench, case: TuningCase, seconds: float, clock: Callable[[], float], progress: Progress
) -> Choice:
    """The rule is first among the candidates: it always runs, and the others are held against its output."""
    start = clock()
    ways = candidates_of(case.variant, bench.architecture)
    rule, chosen, fastest = None, ways[0], 0.0
    with bench.open(case) as on_gpu:
        for index, (way, cubin) in enumerate(zip(ways, bench.compile(case, ways), strict=True)):
            if cubin is not None:
                timed = on_gpu.time(cubin)
                if rule is None:
                    rule, fastest = timed, timed.seconds
                elif timed.seconds < min(fastest, WORTH * rule.seconds) and _agree(timed, rule):
                    chosen, fastest = way, timed.seconds
            spent = clock() - start
            progress(min(max(spent / seconds, (index + 1) / len(ways)), 1.0))
            if rule is not None and spent >= seconds:
                break
    assert rule is not None, "the rule's own choice fits: the tests compile it for each architecture"
    return Choice(
        kernel=case.kernel,
        int8_cache=case.spec.cache_dtype == "int8",
        width=case.width,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        constants=chosen.constants,
        microseconds=1e6 * fastest,
        rule_microseconds=1e6 * rule.seconds,
    )


def _agree(one: Timed, other: Timed) -> bool:
    """Whether two outputs are those of one computation; a kernel that a compiler broke is not chosen."""
    largest = float(np.abs(other.output).max())
    return bool(np.abs(one.output - other.output).max() <= ALLOWED * largest)
