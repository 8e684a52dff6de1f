"""Whatever a bundle's files hold, also where the manifest agrees: a typed error, or a bundle that runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvfold.pipeline.cli import cli
from kvfold.pipeline.report.report_results import read_results, results_file
from kvfold.plugins.contract.errors import BundleError
from kvfold.runtime.bundle import CONFIG
from tests.pipeline.workspace.hostile_bundles import (
    ENGINE,
    FILES,
    OTHER,
    RANDOM_CASES,
    SAME,
    TYPED,
    Outcome,
    record,
    replace,
)
from tests.root import ROOT


@pytest.fixture(scope="module")
def outcomes(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Of every case; the bundle itself stays as it is."""
    worker = "tests.pipeline.workspace.hostile_bundles"
    command = [sys.executable, "-m", worker, str(small_bundle), str(tmp_path_factory.mktemp("hostile"))]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return [Outcome(**json.loads(line)) for line in process.stdout.splitlines()]


def test_every_bundle_runs_or_is_refused_by_a_typed_error(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.result not in (SAME, OTHER, TYPED)] == []


def test_what_the_manifest_does_not_record_is_never_run(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if not outcome.agrees and outcome.result == OTHER] == []


def test_no_other_engine_json_is_run(outcomes: list[Outcome]) -> None:
    """Only what nobody computes with, how often passes matched, may say something else."""
    hostile = [outcome for outcome in outcomes if outcome.file == ENGINE and outcome.agrees]
    accepted = [o.damage for o in hostile if o.result != TYPED]
    assert [damage for damage in accepted if "'passes'" not in damage and "'tensorrt'" not in damage] == []


def test_the_cases_are_of_every_kind(outcomes: list[Outcome]) -> None:
    assert len(outcomes) > RANDOM_CASES
    assert {outcome.file for outcome in outcomes} == set(FILES)
    assert {outcome.agrees for outcome in outcomes} == {True, False}
    assert {outcome.result for outcome in outcomes} >= {SAME, TYPED}


def test_records_that_commands_read_are_refused_by_name(small_bundle: Path, tmp_path: Path) -> None:
    root = shutil.copytree(small_bundle, tmp_path / "bundle")
    for name in (CONFIG, results_file("cpu")):
        replace(root / name, b'{"family": 3}')
        record(root, name)
    with pytest.raises(BundleError, match=r"results\.json is not valid:(?s:.*)recipe: Field required"):
        read_results(root)
    error = CliRunner().invoke(cli, ["inspect", str(root)]).exception
    assert isinstance(error, BundleError) and f"{CONFIG} is not valid" in str(error)
