"""What compilation makes of the table of tuned ways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvfold.pipeline.build.tuning.tuning_cases import TuningCase
from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda import tuned_table
from kvfold.plugins.cuda.compile_kernels import compile_variant
from kvfold.plugins.cuda.tuned_table import BrokenWay, Choice, TunedTable
from kvfold.plugins.cuda.tuning import Tuning, rule_of, tunings_of
from tests.pipeline.build.tuning.test_tune_kernels import CASES, ways_of


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where compilation looks for tables."""
    monkeypatch.setattr(tuned_table, "TABLES", tmp_path / "tuned")
    tuned_table.tuned_table.cache_clear()
    yield tmp_path / "tuned"
    tuned_table.tuned_table.cache_clear()


def write_table(path: Path, case: TuningCase, way: Tuning, error: str = "") -> None:
    """With a choice, or with a way that broke the GPU."""
    named = {
        "kernel": case.kernel,
        "int8_cache": case.spec.cache_dtype == "int8",
        "width": case.width,
        "num_warps": way.num_warps,
        "num_stages": way.num_stages,
        "constants": way.constants,
    }
    table = {
        "architecture": 90,
        "card": "Stand-in 9000",
        "date": "2026-11-28",
        "triton": "3.9.0",
        "sources": "",
    }
    if error:
        TunedTable(broken=(BrokenWay(**named, error=error),), **table).save(path)
    else:
        TunedTable(choices=(Choice(**named, microseconds=1.0, rule_microseconds=2.0),), **table).save(path)


def test_without_a_table_the_rule_is_taken(tables: Path) -> None:
    assert not tables.exists()
    assert tunings_of(CASES[0].variant, 90) == (rule_of(CASES[0].variant, 90),)


def test_compilation_takes_what_the_table_says_for_its_architecture_alone(tables: Path) -> None:
    case = next(case for case in CASES if case.name == "decode int8 9/1x64")
    way = next(way for way in ways_of(case) if way.constants["SPLIT_KEYS"] == 512 and way.num_warps == 4)
    write_table(tables / "sm90.json", case, way)
    kernel = compile_variant(case.variant, 90).kernel
    assert (kernel.num_warps, kernel.constants) == (4, {"split_keys": 512})
    assert compile_variant(case.variant, 80).kernel.constants == {"split_keys": 256}


def test_a_choice_that_does_not_fit_another_variant_falls_back_to_the_rule(tables: Path) -> None:
    case = next(case for case in CASES if case.name == "decode int8 9/1x64")
    rule = rule_of(case.variant, 90)
    too_large = Tuning(4, 12, rule.constants | {"SPLIT_KEYS": 4096, "KEYS": 256})
    write_table(tables / "sm90.json", case, too_large)
    kernel = compile_variant(case.variant, 90).kernel
    assert (kernel.num_warps, kernel.constants["split_keys"]) == (rule.num_warps, 256)


def test_a_rule_that_broke_the_gpu_is_not_built(tables: Path) -> None:
    case = next(case for case in CASES if case.name == "decode int8 9/1x64")
    rule, other = ways_of(case)[:2]
    write_table(tables / "sm90.json", case, rule, error="it did not end in 10 s")
    with pytest.raises(
        KernelError,
        match=r"decode with int8 .* 64 .*did not end in 10 s.*run `kvfold tune` again.*sm90\.json",
    ):
        compile_variant(case.variant, 90)
    assert tunings_of(CASES[0].variant, 90) == (rule_of(CASES[0].variant, 90),)
    write_table(tables / "sm90.json", case, other, error="it did not end in 10 s")
    tuned_table.tuned_table.cache_clear()
    assert tunings_of(case.variant, 90) == (rule,)


def test_a_file_that_is_no_table_is_refused_by_name(tables: Path) -> None:
    tables.mkdir()
    (tables / "sm90.json").write_text('{"architecture": 90}')
    with pytest.raises(KernelError, match=r"(?s)sm90\.json.*run `kvfold tune` again on such a card"):
        tunings_of(CASES[0].variant, 90)


def test_a_table_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match=r"cannot be written .*kvfold tune --output FILE"):
        write_table(tmp_path / "file" / "sm90.json", CASES[0], ways_of(CASES[0])[0])
