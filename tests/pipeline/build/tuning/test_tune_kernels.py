"""Tuning with a stand-in for the GPU: what is chosen, when it stops, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from kvfold.pipeline.build.tuning.tune_kernels import Broke, Timed, begun_path, begun_table, tune_kernels
from kvfold.pipeline.build.tuning.tuning_cases import TuningCase, tuning_cases
from kvfold.plugins.contract.progress import Progress, unheard
from kvfold.plugins.cuda.attention_spec import Variant
from kvfold.plugins.cuda.compile_kernels import Cubin
from kvfold.plugins.cuda.kernel_library import CompiledKernel
from kvfold.plugins.cuda.tuned_table import TunedTable, table_path
from kvfold.plugins.cuda.tuning import Tuning, candidates_of, rule_of, tuning_of

CASES = tuning_cases()
SECONDS_A_WAY = 1.0


class StandIn:
    """A GPU on which a way's time is what the test says; each costs a second of its clock.

    Args:
        seconds: what ways to compile a case take, and others 2.0; None where one does not fit.
        broken: a way whose output is another.
        breaks: ways that break it.
        stops: after so many ways the user does.
    """

    card, architecture, triton = "Stand-in 9000", 90, "3.9.0"

    def __init__(
        self,
        *seconds: tuple[Tuning, float | None],
        broken: Tuning | None = None,
        breaks: tuple[Tuning, ...] = (),
        stops: int | None = None,
    ) -> None:
        self.now, self.tried = 0.0, list[Tuning]()
        self._breaks, self._stops = breaks, stops
        self._seconds, self._broken, self._open = seconds, broken, False

    def seconds(self, way: Tuning) -> float | None:
        return next((seconds for known, seconds in self._seconds if known == way), 2.0)

    def clock(self) -> float:
        return self.now

    def compile(self, case: TuningCase, ways: Iterable[Tuning]) -> Iterator[Cubin | None]:
        for way in ways:
            self.tried.append(way)
            self.now += SECONDS_A_WAY
            yield None if self.seconds(way) is None else cubin_of(case.variant, len(self.tried) - 1)

    @contextmanager
    def open(self, case: TuningCase) -> Iterator[StandIn]:
        assert not self._open, "the memory of one case is free before the next is filled"
        self._open = True
        try:
            yield self
        finally:
            self._open = False

    def time(self, cubin: Cubin) -> Timed | Broke:
        way = self.tried[cubin.kernel.registers]
        if self._stops is not None and cubin.kernel.registers >= self._stops:
            raise KeyboardInterrupt
        if way in self._breaks:
            return Broke("CUDA_ERROR_ILLEGAL_ADDRESS")
        return Timed(self.seconds(way) or 0.0, np.full(8, 2.0 if way == self._broken else 1.0))


def cubin_of(variant: Variant, index: int) -> Cubin:
    """A cubin that remembers which way it is."""
    kernel = CompiledKernel(
        variant=variant.name,
        architecture=90,
        symbol="kernel",
        file="",
        sha256="",
        num_warps=4,
        shared_bytes=0,
        registers=index,
        spill_bytes=0,
        arguments=(),
        grid=("one", "one", "one"),
    )
    return Cubin(kernel, b"", "")


def tune(
    gpu: StandIn,
    cases: tuple[TuningCase, ...],
    seconds: float,
    progress: Progress = unheard,
    keep: Path | None = None,
) -> TunedTable:
    """From nothing, or what an earlier run kept in a file."""
    with TemporaryDirectory() as folder:
        path = keep or Path(folder) / "sm90.json"
        return tune_kernels(gpu, cases, seconds, gpu.clock, progress, path)


def ways_of(case: TuningCase) -> list[Tuning]:
    return candidates_of(case.variant, 90)


def test_each_kernel_type_of_caches_and_width_has_one_case() -> None:
    assert len({(case.kernel, case.spec.cache_dtype, case.width) for case in CASES}) == len(CASES) == 12


@pytest.mark.parametrize("architecture", [75, 90])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_rule_is_the_first_candidate_and_each_is_another(case: TuningCase, architecture: int) -> None:
    ways = candidates_of(case.variant, architecture)
    assert ways[0] == rule_of(case.variant, architecture)
    assert len(ways) > 20 and len(set(map(repr, ways))) == len(ways)


def test_the_fastest_way_is_chosen_and_one_that_computes_something_else_is_not() -> None:
    case = CASES[0]
    rule, near, wrong, best = (ways_of(case)[index] for index in (0, 3, 7, 9))
    gpu = StandIn((rule, 2.0), (near, 1.5), (wrong, 0.1), (best, 1.0), broken=wrong)
    table = tune(gpu, (case,), 1000.0)
    (choice,) = table.choices
    assert tuning_of(choice) == best
    assert (choice.microseconds, choice.rule_microseconds) == (1e6, 2e6)
    assert (table.card, table.architecture, table.triton) == ("Stand-in 9000", 90, "3.9.0")


def test_less_than_a_fiftieth_is_noise_and_the_rule_stays() -> None:
    case = CASES[0]
    gpu = StandIn((ways_of(case)[5], 1.97))
    (choice,) = tune(gpu, (case,), 1000.0).choices
    assert tuning_of(choice) == ways_of(case)[0]


def test_ways_that_do_not_fit_are_left_out() -> None:
    case = CASES[0]
    gpu = StandIn(*((way, None) for way in ways_of(case)[1:]))
    (choice,) = tune(gpu, (case,), 1000.0).choices
    assert tuning_of(choice) == ways_of(case)[0] and len(gpu.tried) == len(ways_of(case))


def test_cases_share_the_time_and_the_clock_ends_them() -> None:
    """Twelve cases in 60 s at a second a way: five each, and what is told only grows."""
    gpu, told = StandIn(), list[float]()
    table = tune(gpu, CASES, 60.0, lambda fraction, note="": told.append(fraction))
    assert len(table.choices) == len(CASES) and gpu.now == 60.0
    assert told == sorted(told) and told[-1] == pytest.approx(1.0)


def test_without_time_each_case_is_still_tried_as_the_rule_compiles_it() -> None:
    gpu = StandIn()
    assert len(tune(gpu, CASES, 0.5).choices) == len(CASES)
    assert gpu.tried == [ways_of(case)[0] for case in CASES]


def test_a_way_that_breaks_the_gpu_is_named_and_tuning_goes_on(tmp_path: Path) -> None:
    case = CASES[0]
    rule, breaks, best = (ways_of(case)[index] for index in (0, 3, 9))
    gpu = StandIn((rule, 2.0), (breaks, 0.1), (best, 1.0), breaks=(breaks,))
    table = tune(gpu, (case,), 1000.0)
    assert [tuning_of(choice) for choice in table.choices] == [best]
    (broken,) = table.broken
    assert tuning_of(broken) == breaks
    assert broken.error == "CUDA_ERROR_ILLEGAL_ADDRESS"


def test_where_the_rule_breaks_the_gpu_its_case_has_no_choice(tmp_path: Path) -> None:
    rule = ways_of(CASES[0])[0]
    gpu = StandIn(breaks=(rule,))
    cases = (CASES[0], next(case for case in CASES if ways_of(case)[0] != rule))
    table = tune(gpu, cases, 1000.0)
    assert len(gpu.tried) == 1 + len(ways_of(cases[1]))
    assert [choice.kernel for choice in table.choices] == [cases[1].kernel]
    assert len(table.broken) >= 1


def test_where_the_gpu_refuses_the_rule_its_case_has_no_choice() -> None:
    gpu = StandIn((ways_of(CASES[0])[0], None))
    table = tune(gpu, CASES[:1], 1000.0)
    assert len(gpu.tried) == 1 and not table.choices and not table.broken


def test_a_stopped_run_is_gone_on_from(tmp_path: Path) -> None:
    """In its third case: the first two are in the file, and what broke the GPU is not tried again."""
    path, begun, cases = tmp_path / "sm90.json", tmp_path / "sm90.json.begun", CASES[:3]
    ways = [ways_of(case) for case in cases]
    breaks = ways[1][4]
    stopped = StandIn(breaks=(breaks,), stops=len(ways[0]) + len(ways[1]) + 5)
    with pytest.raises(KeyboardInterrupt):
        tune(stopped, cases, 1000.0, keep=path)
    assert not path.exists()
    kept = TunedTable.load(begun)
    assert [choice.serves for choice in kept.choices] == [
        (case.kernel, case.spec.cache_dtype == "int8", case.width) for case in cases[:2]
    ]
    assert [each.error for each in kept.broken] == ["CUDA_ERROR_ILLEGAL_ADDRESS"]

    gpu = StandIn()
    table = tune(gpu, cases, 1000.0, keep=path)
    assert gpu.tried == ways[2]
    assert table.choices[:2] == kept.choices and len(table.choices) == 3 and table.broken == kept.broken
    assert TunedTable.load(path) == table and not begun.exists()

    again = StandIn()
    assert tune(again, cases, 1000.0, keep=path).broken == ()
    assert again.tried == [way for case in ways for way in case], "a whole table is measured anew"


def test_a_stopped_run_leaves_a_whole_table_as_it_is(tmp_path: Path) -> None:
    path, cases = tmp_path / "sm90.json", CASES[:3]
    whole = tune(StandIn(), cases, 1000.0, keep=path)
    with pytest.raises(KeyboardInterrupt):
        tune(StandIn(stops=len(ways_of(cases[0])) + 1), cases, 1000.0, keep=path)
    assert TunedTable.load(path) == whole
    assert len(TunedTable.load(begun_path(path, 90)).choices) == 1


def test_what_is_begun_lies_outside_of_the_folder_that_builds_hash(tmp_path: Path) -> None:
    table = table_path(90)
    assert begun_path(table, 90) == table.parent.resolve().parent / "sm90.json.begun"
    assert begun_path(tmp_path / "mine.json", 90) == tmp_path / "mine.json.begun"


def test_a_way_that_broke_the_gpu_is_kept_where_its_case_does_not_end(tmp_path: Path) -> None:
    path, case = tmp_path / "sm90.json", CASES[0]
    breaks = ways_of(case)[4]
    with pytest.raises(KeyboardInterrupt):
        tune(StandIn(breaks=(breaks,), stops=6), (case,), 1000.0, keep=path)
    kept = TunedTable.load(begun_path(path, 90))
    assert kept.choices == () and [tuning_of(way) for way in kept.broken] == [breaks]
    gpu = StandIn()
    tune(gpu, (case,), 1000.0, keep=path)
    assert gpu.tried == [way for way in ways_of(case) if way != breaks]


@pytest.mark.parametrize(
    "changed", [{"card": "Another"}, {"triton": "0.1"}, {"architecture": 80}, {"sources": "other kernels"}]
)
def test_what_another_card_compiler_or_kernel_began_is_measured_anew(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    path, gpu = tmp_path / "sm90.json.begun", StandIn()
    table = tune(gpu, CASES[:1], 1.0)
    table.save(path)
    assert begun_table(path, gpu) == table
    table.model_copy(update=changed).save(path)
    assert begun_table(path, gpu).choices == ()
