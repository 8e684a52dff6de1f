"""`kvfold frontier` on tiny recipes: every rung measured once, drawn, and for one model only."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from kvfold.pipeline.bring_up_to_date import bring_up_to_date
from kvfold.pipeline.cli import cli
from kvfold.pipeline.recipe.recipe_files import shipped_recipes
from kvfold.pipeline.studies.frontier.ladder import SHIPPED_LADDER, load_ladder
from kvfold.pipeline.studies.frontier.rungs import SHOWN_CONTEXT, Frontier, Rung
from kvfold.pipeline.workspace.workspace import ADAPTER
from kvfold.plugins.contract.errors import RecipeError
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.pipeline.stages.test_heal_stage import HEAL
from tests.pipeline.tiny_recipe import RECIPE, write_tiny_recipe

EVALUATE = """
evaluate: {source: text.txt, tokens: 1024, sequence_length: 128, kl_tokens: 600}
"""
WHOLE = RECIPE.replace("preset: character", "preset: identity") + EVALUATE
SVG = "{http://www.w3.org/2000/svg}"
LADDER = ("whole", "tiny", "healed", "adapted")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing folded, all folded, folded and healed, and the same again from the adapter."""
    folder = tmp_path_factory.mktemp("ladder")
    write_tiny_recipe(folder)
    (folder / "whole.yaml").write_text(WHOLE)
    (folder / "healed.yaml").write_text(RECIPE + HEAL)
    (folder / "adapted.yaml").write_text(RECIPE + "heal: {adapter: adapter.safetensors}\n")
    return folder


def invoke(*names: str) -> Result:
    return CliRunner().invoke(cli, ["frontier", *(f"{name}.yaml" for name in names), "-o", "out"])


@pytest.fixture(scope="module")
def first(folder: Path) -> Result:
    """The first run; the bundles are made below the current folder, as users make them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        healed = CliRunner().invoke(cli, ["heal", "healed.yaml"])
        assert healed.exit_code == 0, healed.output
        shutil.copy(folder / "bundles" / "healed" / ADAPTER, folder)
        return invoke(*LADDER)


@pytest.fixture(scope="module")
def frontier(first: Result, folder: Path) -> Frontier:
    assert first.exit_code == 0, first.output
    return Frontier.model_validate_json((folder / "out" / "frontier.json").read_bytes())


def rungs(frontier: Frontier) -> dict[str, Rung]:
    return {rung.recipe: rung for rung in frontier.rungs}


def test_every_rung_is_measured_on_the_first_one_s_text(frontier: Frontier) -> None:
    assert [rung.recipe for rung in frontier.rungs] == list(LADDER)  # the largest cache first
    assert frontier.text == "text.txt"
    for rung in frontier.rungs:
        perplexity, divergences = rung.cost.perplexity, rung.cost.divergences
        assert (perplexity.length, perplexity.windows) == (128, 8)
        assert (divergences.windows, divergences.tokens) == (5, 640)  # 600 tokens, in whole windows
        assert [row.context_length for row in rung.kv_bytes] == [1, 1024, 2048, 8192]
        assert rung.cost.kl.low is not None


def test_what_is_not_folded_costs_nothing_and_healed_weights_count(frontier: Frontier) -> None:
    found = rungs(frontier)
    assert (found["whole"].cost.kl.value, found["whole"].cost.ratio.value) == (0, 1)
    assert 0 < found["tiny"].cost.kl.value != found["healed"].cost.kl.value > 0
    assert found["adapted"].cost == found["healed"].cost
    assert found["tiny"].kv(SHOWN_CONTEXT) == found["healed"].kv(SHOWN_CONTEXT)
    assert "whole" in {rung.recipe for rung in frontier.best}


def test_folded_rungs_come_from_their_bundles_as_they_are(first: Result, frontier: Frontier) -> None:
    """`kvfold heal` had made this bundle: no stage of it ran again."""
    lines = first.output.splitlines()
    start = lines.index("healed -> bundles/healed")
    end = lines.index("adapted -> bundles/adapted")
    assert all(" = " in line for line in lines[start + 1 : end] if line.strip())


def test_what_is_to_be_done_is_said_first(first: Result) -> None:
    """`kvfold heal` had made one of the bundles."""
    text = " ".join(first.output.split("whole -> ")[0].split())
    assert text.startswith(
        "To do, before the tables: whole: reading the checkpoint, preparing text to evaluate"
    )
    assert "folding heads and layers" in text and "training" not in text
    assert "hold 4 of 4 rungs to the original on 1,024 tokens: about" in text
    assert " healed: " not in text


def test_the_picture_is_self_contained_and_has_every_rung(frontier: Frontier, folder: Path) -> None:
    text = (folder / "out" / "frontier.svg").read_text()
    for outside in ("https://", "<script", "href", "@import", "url("):
        assert outside not in text
    names = [element.text for element in ElementTree.fromstring(text).iter(f"{SVG}text")]
    for name in LADDER:
        assert names.count(name) == 2, "once in each panel"


def test_the_tables_say_it(first: Result, frontier: Frontier, folder: Path) -> None:
    markdown = (folder / "out" / "frontier.md").read_text()
    for text in (first.output, markdown):
        assert all(name in text for name in (*LADDER, "2,048 tokens", "over the original's", "KL mean"))
    assert "\u2026" not in first.output, "a table is wider than 80 columns"
    assert len(re.findall(r"^\| \*\*", markdown, re.M)) == len(frontier.best)
    assert str(folder) not in markdown + (folder / "out" / "frontier.json").read_text()


def test_nothing_is_measured_twice_and_only_what_changed_again(
    first: Result, frontier: Frontier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    again = invoke(*LADDER)
    assert again.exit_code == 0, again.output
    assert all(f"= rungs/{name:<5} unchanged" in again.output for name in LADDER)
    assert "To do" not in again.output
    assert Frontier.model_validate_json((folder / "out" / "frontier.json").read_bytes()) == frontier
    (folder / "tiny.yaml").write_text(RECIPE + "fold: {ridge: 0.1}\n")
    (folder / "out" / "rungs" / "whole.json").write_text("{")
    changed = invoke(*LADDER)
    assert changed.exit_code == 0, changed.output
    assert all(f"~ rungs/{name:<5} again" in changed.output for name in ("tiny", "whole"))
    assert all(f"= rungs/{name:<5} unchanged" in changed.output for name in ("healed", "adapted"))


def test_a_ladder_is_for_one_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By content: the same checkpoint under another path is the same model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "model", tmp_path / "copy")
    write_folder(tmp_path / "other", random_model("qwen2"))
    shutil.copy(folder / "text.txt", tmp_path)
    for name in ("copy", "other"):
        (tmp_path / f"{name}.yaml").write_text(WHOLE.replace("source: model", f"source: {name}"))
    whole = str(folder / "whole.yaml")
    assert len(load_ladder([whole, "copy.yaml"])) == 2
    refused = CliRunner().invoke(cli, ["frontier", whole, "copy.yaml", "other.yaml"])
    assert isinstance(refused.exception, RecipeError)
    assert "different models" in str(refused.exception) and "other" in str(refused.exception)
    assert not (tmp_path / "bundles").exists(), "refused before any work"


def test_the_target_of_a_rung_does_not_matter(folder: Path, tmp_path: Path) -> None:
    """A TensorRT-RTX recipe that names no architecture folds where there is no GPU."""
    recipe = bring_up_to_date(str(folder / "tiny.yaml"), tmp_path / "bundle", "heal", "tensorrt-rtx")
    assert not recipe.tensorrt.architectures


def test_a_rung_is_named_once(folder: Path) -> None:
    name = str(folder / "whole.yaml")
    with pytest.raises(RecipeError, match="two rungs are called whole"):
        load_ladder([name, name])


def test_the_shipped_ladder_is_every_shipped_recipe() -> None:
    assert sorted(SHIPPED_LADDER) == shipped_recipes()
