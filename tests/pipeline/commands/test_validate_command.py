"""`kvfold validate`: its tables, and the exit of a bundle that misses a threshold."""

from __future__ import annotations

import shutil
from pathlib import Path

from click.testing import CliRunner, Result

from kvfold.pipeline.cli import cli
from kvfold.pipeline.report.report_results import page_file
from kvfold.plugins.contract.errors import ValidationError


def test_it_prints_its_tables_and_fails_on_a_missed_threshold(
    recipes: Path, small_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")

    def invoke(name: str) -> Result:
        return CliRunner().invoke(cli, ["validate", str(recipes / f"{name}.yaml"), "--output", str(bundle)])

    passed = invoke("small")
    assert passed.exit_code == 0, passed.output
    assert "perplexity" in passed.output
    missed = invoke("strict")
    assert isinstance(missed.exception, ValidationError)
    assert "max_engine_kl" in str(missed.exception)
    assert (bundle / page_file("cpu")).read_text().count('class="bad"') == 1
