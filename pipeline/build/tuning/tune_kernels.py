"""Time ways to compile each kernel until the clock says stop; the fastest of each go into a table.

The table is kept after each case, so that a run that ends early is gone on from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from kvfold.pipeline.build.tuning.tuning_cases import TuningCase
from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.contract.progress import Progress, part
from kvfold.plugins.cuda.compile_kernels import Cubin
from kvfold.plugins.cuda.tuned_table import BrokenWay, Choice, TunedTable
from kvfold.plugins.cuda.tuning import Tuning, candidates_of, rule_of
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


@dataclass(frozen=True)
class Broke:
    """One way to compile that broke the GPU, and the error that came of it."""

    error: str


class CaseOnGpu(Protocol):
    """The inputs of a case in a GPU's memory."""

    def time(self, cubin: Cubin) -> Timed | Broke:
        """Run the case with this cubin of its kernel; also after one that broke the GPU.

        Raises:
            KvfoldError: the GPU can no more be used.
        """
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
    table: TunedTable,
    keep: Callable[[TunedTable], None],
) -> TunedTable:
    """The fastest way found for each case.

    Args:
        bench: the GPU.
        cases: what to time.
        seconds: that it may take; cases share what is left evenly, and each is tried at least as the rule
            compiles it.
        clock: seconds that go by.
        progress: told the fraction of the time, or of the work if that is further.
        table: to go on from, as of `begun_table`.
        keep: told the table after each case.
    """
    start = clock()
    waiting = [case for case in cases if not _is_done(case, table)]
    for index, case in enumerate(waiting):
        begun = clock() - start
        share = (seconds - begun) / (len(waiting) - index)
        told = part(progress, begun / seconds, share / seconds, case.name)
        choice, broken = _tune(bench, case, _broken_ways(case, table), share, clock, told)
        found = {
            "date": date.today().isoformat(),
            "choices": (*table.choices, *([choice] if choice else [])),
            "broken": (*table.broken, *broken),
        }
        table = table.model_copy(update=found)
        keep(table)
    return table


def begun_table(path: Path, bench: Bench, cases: Iterable[TuningCase]) -> TunedTable:
    """What an earlier run on this card did not finish, else nothing: a whole table is measured anew."""
    nothing = TunedTable(
        architecture=bench.architecture, card=bench.card, date=date.today().isoformat(), triton=bench.triton
    )
    try:
        found = TunedTable.load(path)
    except KernelError:  # there is none
        return nothing
    same = all(getattr(found, name) == getattr(nothing, name) for name in ("architecture", "card", "triton"))
    return nothing if not same or all(_is_done(case, found) for case in cases) else found


def _is_done(case: TuningCase, table: TunedTable) -> bool:
    """Whether a case has its choice, or can have none."""
    rule = rule_of(case.variant, table.architecture)
    return table.find(*_served(case)) is not None or rule in _broken_ways(case, table)


def _broken_ways(case: TuningCase, table: TunedTable) -> list[Tuning]:
    broken = [way for way in table.broken if way.serves == _served(case)]
    return [Tuning(way.num_warps, way.num_stages, way.constants) for way in broken]


def _served(case: TuningCase) -> tuple[Literal["prefill", "decode"], bool, int]:
    """See `Way.serves`."""
    return case.kernel, case.spec.cache_dtype == "int8", case.width


def _tune(
    bench: Bench,
    case: TuningCase,
    known: list[Tuning],
    seconds: float,
    clock: Callable[[], float],
    progress: Progress,
) -> tuple[Choice | None, list[BrokenWay]]:
    """The rule is first among the candidates: it always runs, and the others are held against its output.

    Where it breaks the GPU, there is no choice. `known`: ways to leave out.
    """
    start = clock()
    ways = [way for way in candidates_of(case.variant, bench.architecture) if way not in known]
    rule, chosen, fastest, broken = None, ways[0], 0.0, list[BrokenWay]()
    with bench.open(case) as on_gpu:
        for index, (way, cubin) in enumerate(zip(ways, bench.compile(case, ways), strict=True)):
            timed = None if cubin is None else on_gpu.time(cubin)
            if isinstance(timed, Broke):
                broken.append(BrokenWay(**_named(case, way), error=timed.error))
            elif timed is not None and rule is None:
                rule, fastest = timed, timed.seconds
            elif timed and rule and _is_better(timed, fastest, rule):
                chosen, fastest = way, timed.seconds
            spent = clock() - start
            progress(min(max(spent / seconds, (index + 1) / len(ways)), 1.0))
            if spent >= seconds or (broken and rule is None):
                break
    if rule is None:
        assert broken, "the rule's own choice fits: the tests compile it for each architecture"
        return None, broken
    times = {"microseconds": 1e6 * fastest, "rule_microseconds": 1e6 * rule.seconds}
    return Choice(**_named(case, chosen), **times), broken


def _named(case: TuningCase, way: Tuning) -> dict[str, Any]:
    """The fields of a `Way`."""
    kernel, int8_cache, width = _served(case)
    return {
        "kernel": kernel,
        "int8_cache": int8_cache,
        "width": width,
        "num_warps": way.num_warps,
        "num_stages": way.num_stages,
        "constants": way.constants,
    }


def _is_better(timed: Timed, fastest: float, rule: Timed) -> bool:
    """Whether a way is to be chosen, of what computes the same."""
    return timed.seconds < min(fastest, WORTH * rule.seconds) and _agree(timed, rule)


def _agree(one: Timed, other: Timed) -> bool:
    """Whether two outputs are those of one computation; a kernel that a compiler broke is not chosen."""
    largest = float(np.abs(other.output).max())
    return bool(np.abs(one.output - other.output).max() <= ALLOWED * largest)
