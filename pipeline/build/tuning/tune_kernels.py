"""Time ways to compile each kernel until the clock says stop; the fastest of each go into a table.

What is found is kept in a file beside the table after each case. So a run that ends early is gone on from,
and until it is whole builds keep the table that they had.
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
from kvfold.pipeline.workspace.sources import hash_sources
from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.contract.progress import Progress, part
from kvfold.plugins.cuda.compile_kernels import Cubin
from kvfold.plugins.cuda.tuned_table import BrokenWay, Choice, TunedTable, table_path
from kvfold.plugins.cuda.tuning import Tuning, candidates_of, rule_of, tuning_of
from kvfold.plugins.paged_attention.tolerances import OUTPUT

# What a way's time depends on, besides the way, the card and Triton.
MEASURED = (
    *(f"kvfold.plugins.cuda.kernels.{name}" for name in ("prefill", "decode", "merge")),
    "kvfold.pipeline.build.tuning.tuning_cases",
)
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

    def time(self, cubin: Cubin) -> Timed | Broke | None:
        """Run the case with this cubin of its kernel; also after one that broke the GPU.

        Returns:
            None where the GPU refuses the cubin and goes on.

        Raises:
            CapacityError: other programs took the GPU's memory meanwhile.
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
    path: Path,
) -> TunedTable:
    """The fastest way found for each case.

    Args:
        bench: the GPU.
        cases: what to time.
        seconds: that it may take; cases share what is left evenly, and each is tried at least as the rule
            compiles it.
        clock: seconds that go by.
        progress: told the fraction of the time, or of the work if that is further.
        path: where the whole table goes. What was found until then is in the file of `begun_path`.

    Raises:
        KvfoldError: the GPU can no more be used, or a file cannot be written.
    """
    start, begun_file = clock(), begun_path(path, bench.architecture)
    table = begun_table(begun_file, bench)
    waiting = [case for case in cases if not _is_done(case, table)]
    for index, case in enumerate(waiting):
        begun = clock() - start
        share = (seconds - begun) / (len(waiting) - index)
        told = part(progress, begun / seconds, share / seconds, case.name)
        choice, broken = None, list[BrokenWay]()
        try:
            choice = _tune(bench, case, _broken_ways(case, table), share, clock, told, broken)
        finally:  # also where the case does not end: what broke the GPU is not tried again
            found = {
                "date": date.today().isoformat(),
                "choices": (*table.choices, *([choice] if choice else [])),
                "broken": (*table.broken, *broken),
            }
            table = table.model_copy(update=found)
            table.save(begun_file)
    table.save(path)
    begun_file.unlink(missing_ok=True)
    return table


def begun_path(path: Path, architecture: int) -> Path:
    """Where a table is kept until it is whole: beside it, but above the folder whose files builds hash."""
    folder = path.parent.resolve()
    if folder == table_path(architecture).parent.resolve():
        folder = folder.parent
    return folder / f"{path.name}.begun"


def begun_table(path: Path, bench: Bench) -> TunedTable:
    """What an earlier run on this card did not finish, of the same kernels and cases, else nothing."""
    nothing = TunedTable(
        architecture=bench.architecture,
        card=bench.card,
        date=date.today().isoformat(),
        triton=bench.triton,
        sources=hash_sources(MEASURED),
    )
    try:
        found = TunedTable.load(path)
    except KernelError:  # there is none
        return nothing
    names = "architecture", "card", "triton", "sources"
    return found if all(getattr(found, name) == getattr(nothing, name) for name in names) else nothing


def _is_done(case: TuningCase, table: TunedTable) -> bool:
    """Whether a case has its choice, or can have none."""
    rule = rule_of(case.variant, table.architecture)
    return table.find(*_served(case)) is not None or rule in _broken_ways(case, table)


def _broken_ways(case: TuningCase, table: TunedTable) -> list[Tuning]:
    return [tuning_of(way) for way in table.broken if way.serves == _served(case)]


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
    broken: list[BrokenWay],
) -> Choice | None:
    """The rule is first among the candidates: it always runs, and the others are held against its output.

    Where it does not, there is no choice. `known`: ways to leave out. `broken`: gets what breaks the GPU.
    """
    start = clock()
    ways = [way for way in candidates_of(case.variant, bench.architecture) if way not in known]
    rule, chosen, fastest = None, ways[0], 0.0
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
            if spent >= seconds or rule is None:
                break
    if rule is None:
        return None
    times = {"microseconds": 1e6 * fastest, "rule_microseconds": 1e6 * rule.seconds}
    return Choice(**_named(case, chosen), **times)


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
