"""`kvfold ablate` on a tiny recipe: every method measured once, and told apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvfold.export.fold.baselines import METHODS
from kvfold.pipeline.cli import cli
from kvfold.pipeline.studies.ablation.ablation import MARKDOWN, RESULTS, WORK
from kvfold.pipeline.studies.ablation.ablation_results import Ablation
from kvfold.plugins.contract.errors import RecipeError
from tests.pipeline.tiny_recipe import RECIPE, write_tiny_recipe

EVALUATE = """
evaluate: {source: text.txt, tokens: 512, sequence_length: 128, kl_tokens: 256}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    write_tiny_recipe(folder, RECIPE + EVALUATE)
    return folder


def invoke(folder: Path) -> Result:
    return CliRunner().invoke(cli, ["ablate", str(folder / "tiny.yaml"), "-o", str(folder / "bundle")])


@pytest.fixture(scope="module")
def first(folder: Path) -> Result:
    return invoke(folder)


@pytest.fixture(scope="module")
def ablation(first: Result, folder: Path) -> Ablation:
    assert first.exit_code == 0, first.output
    return Ablation.model_validate_json((folder / "bundle" / RESULTS).read_bytes())


def test_every_method_is_measured_with_and_without_least_squares(ablation: Ablation) -> None:
    measured = [(row.method, row.regressed) for row in ablation.rows]
    assert measured == [(method, regressed) for regressed in (True, False) for method in METHODS]
    assert (ablation.recipe, ablation.text) == ("tiny", "text.txt")
    assert len({row.cost.kl.value for row in ablation.rows}) == len(ablation.rows)
    assert all(
        (row.cost.perplexity.windows, row.cost.divergences.tokens) == (4, 256) for row in ablation.rows
    )


def test_the_tables_say_it(first: Result, ablation: Ablation, folder: Path) -> None:
    markdown = (folder / "bundle" / MARKDOWN).read_text()
    for method in METHODS:
        assert len(re.findall(rf"^{method} ", first.output, re.M)) == 2
        assert len(re.findall(rf"^\| {method} \|", markdown, re.M)) == 2
    assert "\u2026" not in first.output, "a table is wider than 80 columns"
    assert str(folder) not in markdown


def test_what_is_to_be_done_is_said_first(first: Result, ablation: Ablation) -> None:
    lines = first.output.splitlines()
    assert lines[0].startswith("To do")
    assert lines[1].startswith("  tiny: reading the checkpoint, preparing calibration text, ")
    text = " ".join(first.output.split())
    count = len(ablation.rows)
    assert f"{count} of {count} ways to merge heads: fold each on 512 tokens, and hold it against" in text
    assert "against the original on 512: at least about" in text and "Together at least about" in text


def test_nothing_is_folded_twice_and_only_what_changed_again(
    first: Result, ablation: Ablation, folder: Path
) -> None:
    (folder / "bundle" / WORK / "methods" / "mean.json").unlink()
    again = invoke(folder)
    assert again.exit_code == 0, again.output
    assert re.findall(r"~ (methods/\S+)", again.output) == ["methods/mean"]
    assert again.output.count("= methods/") == len(ablation.rows) - 1
    assert "To do" not in again.output, "a file that went missing is noticed when its stage is reached"
    assert Ablation.model_validate_json((folder / "bundle" / RESULTS).read_bytes()) == ablation


def test_a_plan_that_merges_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "whole.yaml").write_text(RECIPE.replace("preset: character", "preset: horizon"))
    result = CliRunner().invoke(cli, ["ablate", str(folder / "whole.yaml"), "-o", str(tmp_path / "bundle")])
    assert isinstance(result.exception, RecipeError)
    assert "nothing to merge" in str(result.exception)
    assert not (tmp_path / "bundle").exists()
