"""`kvfold eval` on a tiny bundle: everything is measured, stored, read back and skipped the second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvfold.pipeline.cli import cli
from kvfold.pipeline.quality.evaluate.evaluation import Evaluation, evaluation_file, read_evaluation
from kvfold.pipeline.quality.subject_names import BFLOAT16, ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.report.evaluation_page import evaluation_page
from kvfold.plugins.contract.errors import BundleError, RecipeError
from tests.pipeline.tiny_recipe import RECIPE, write_tiny_recipe

EVALUATE = """
evaluate:
  source: text.txt
  tokens: 1024
  sequence_length: 256
  lengths: [64, 256, 512]
  kl_tokens: 600
  retrieval: {lengths: [250, 512], depths: [0.2], trials: 2, keys: 2}
  last_words: words.txt
  openers: 12
"""
TEMPLATE = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
SUBJECTS = {ORIGINAL, FOLDED, ENGINE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with an `evaluate` section."""
    folder = tmp_path_factory.mktemp("eval")
    write_tiny_recipe(folder, RECIPE + EVALUATE)
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "words.txt").write_text("a cab and a tab and a cab\nwe saw a bat, and it was a bat.\n")
    return folder


def invoke(folder: Path) -> Result:
    return CliRunner().invoke(cli, ["eval", str(folder / "tiny.yaml"), "--output", str(folder / "bundle")])


@pytest.fixture(scope="module")
def first(folder: Path) -> Result:
    """The first run."""
    with pytest.raises(BundleError):
        read_evaluation(folder / "bundle")
    return invoke(folder)


@pytest.fixture(scope="module")
def evaluation(first: Result, folder: Path) -> Evaluation:
    assert first.exit_code == 0, first.output
    return read_evaluation(folder / "bundle")


def test_everything_that_fits_is_measured(evaluation: Evaluation) -> None:
    assert [(row.length, row.windows) for row in evaluation.perplexity] == [(64, 16), (256, 4)]
    assert all(row.subjects.keys() == SUBJECTS for row in evaluation.perplexity)
    assert all(row.ratios.keys() == {FOLDED, ENGINE} for row in evaluation.perplexity)
    found = evaluation.divergences
    assert (found.length, found.windows, found.tokens) == (256, 3, 768)  # 600 tokens, in whole windows
    assert [row.candidate for row in found.candidates] == [BFLOAT16, FOLDED, ENGINE]
    cells = [(cell.task, cell.length, cell.inside, cell.trials) for cell in evaluation.retrieval]
    assert cells == [("passkey", 250, False, 2), ("multi-key", 250, False, 2)]
    assert evaluation.window == 32
    assert (evaluation.last_words.text, evaluation.last_words.passages) == ("words.txt", 2)
    assert evaluation.last_words.subjects.keys() == SUBJECTS
    assert list(evaluation.cpu_seconds) == ["comparison", "perplexity", "retrieval", "last words", "slips"]
    assert min(evaluation.cpu_seconds.values()) > 0
    assert evaluation.slips is not None
    assert evaluation.slips.engine.replies == 12
    assert evaluation.slips.original.replies == evaluation.slips.drawn.replies == 3
    assert len(evaluation.slips.worst) >= max(evaluation.slips.engine.tokens, evaluation.slips.engine.words)


def test_rounding_costs_less_than_the_fold(evaluation: Evaluation) -> None:
    by_name = {found.candidate: found for found in evaluation.divergences.candidates}
    floor, folded = by_name[BFLOAT16], by_name[FOLDED]
    assert floor.kl_mean.value < folded.kl_mean.value / 10
    for row in (floor, folded):
        assert row.flips.value == pytest.approx(1 - row.top1_agreement.value)
        assert row.flips_lost.value + row.flips_gained.value <= row.flips.value


def test_ratios_are_of_the_same_windows(evaluation: Evaluation) -> None:
    for row in evaluation.perplexity:
        expected = row.subjects[FOLDED].value / row.subjects[ORIGINAL].value
        assert row.ratios[FOLDED].value == pytest.approx(expected)


def test_results_make_the_round_trip(evaluation: Evaluation, folder: Path) -> None:
    text = (folder / "bundle" / evaluation_file("cpu")).read_text()
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation
    assert json.loads(text) == evaluation.model_dump(mode="json")
    assert str(folder) not in text


def test_pooled_retrieval_counts_every_prompt(evaluation: Evaluation) -> None:
    assert [(row.task, row.inside, row.trials) for row in evaluation.retrieval_shares()] == [
        ("passkey", False, 2),
        ("multi-key", False, 2),
    ]


def test_the_tables_say_it(first: Result) -> None:
    for text in (
        "over the original's",
        "bfloat16",
        "KL mean",
        "passkey",
        "outside",
        "Last words, 2 passages",
        "Slips: replies with",
    ):
        assert text in first.output
    assert "\u2026" not in first.output, "a table is wider than 80 columns"
    assert "evaluation.json" in first.output


def test_the_page_is_written_beside_the_results(evaluation: Evaluation, folder: Path) -> None:
    page = (folder / "bundle" / evaluation_page("cpu")).read_text()
    for row in evaluation.perplexity:
        assert f"<b>{row.ratios[ENGINE].value:.3f}\u00d7</b>" in page
    assert str(folder) not in page


def test_nothing_is_measured_twice(first: Result, folder: Path) -> None:
    again = invoke(folder)
    assert again.exit_code == 0, again.output
    assert "evaluate-cpu unchanged" in again.output
    assert again.output.splitlines()[-20:] == first.output.splitlines()[-20:]


def test_other_passages_are_measured_again(evaluation: Evaluation, folder: Path) -> None:
    (folder / "words.txt").write_text("a cab and a tab and a cab\n")
    again = invoke(folder)
    assert "evaluate-cpu again" in again.output
    assert "evaltext    unchanged" in again.output
    assert read_evaluation(folder / "bundle").perplexity == evaluation.perplexity


def test_missing_passages_are_named(folder: Path) -> None:
    recipe = folder / "absent.yaml"
    recipe.write_text(RECIPE + EVALUATE.replace("words.txt", "no-such.txt"))
    with pytest.raises(RecipeError, match=r"evaluate\.last_words: there is no file .*no-such\.txt"):
        load_recipe(str(recipe))
