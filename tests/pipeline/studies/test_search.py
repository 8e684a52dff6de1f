"""`kvfold plan` on a tiny model: measured, chosen, written, resumed; what cannot be reached is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvfold.export.search.costs import Change, Cost
from kvfold.export.search.measure_changes import Station
from kvfold.pipeline.cli import cli
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.plan_section import WrittenPlan, plan_for
from kvfold.pipeline.studies.outlook import UNKNOWN
from kvfold.pipeline.studies.search.ledger import LedgerFile
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.errors import PlanError, RecipeError
from tests.pipeline.tiny_recipe import RECIPE, write_tiny_recipe

SEARCH = """
# Kept: a comment.
search:
  sliding_windows: [32]
  kl_tokens: 128
  prompts: 2
  prompt_length: 400
  measured_window: 64
  plans: 2
  text: {source: text.txt, tokens: 640, sequence_length: 64}
"""
SHAPE = AttentionShape(4, 4, 2, 64)
ALL_GLOBAL = SHAPE.kv_bytes(1024) / 1024 / 2  # int8 is half of bfloat16


def write(folder: Path) -> Path:
    """A recipe to search from; its context holds prompts of one token a letter."""
    return write_tiny_recipe(folder, RECIPE + SEARCH, max_position_embeddings=512)


def plan(folder: Path, *arguments: str, output: str = "found.yaml") -> Result:
    return CliRunner().invoke(
        cli, ["plan", str(folder / "tiny.yaml"), "-o", str(folder / output), *arguments]
    )


def read_ledger(folder: Path, output: str = "found.yaml") -> LedgerFile:
    return LedgerFile.model_validate_json((folder / f"{output}.measured.json").read_bytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def first(folder: Path) -> Result:
    result = plan(folder, "--target-bytes", "300@1k")
    assert result.exit_code == 0, result.output
    return result


def test_the_written_recipe_meets_its_target(first: Result, folder: Path) -> None:
    recipe = load_recipe(str(folder / "found.yaml"))
    assert isinstance(recipe.plan, WrittenPlan)
    found = plan_for(recipe.plan, SHAPE)
    assert found.kv_bytes(1024) <= 300 * 1024 < ALL_GLOBAL * 1024
    before = load_recipe(str(folder / "tiny.yaml"))
    same = {"name": before.name, "plan": before.plan}
    assert recipe.model_copy(update=same) == before
    assert "# Kept: a comment." in (folder / "found.yaml").read_text()


def test_the_tables_say_why(first: Result) -> None:
    for text in ("32 tokens", "one head", "with next 2", "before any healing", "answer NLL", "Wrote"):
        assert text in first.output
    assert "\u2026" not in first.output, "a table is wider than 80 columns"


def test_nothing_is_measured_twice(first: Result, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    for name in ("measure_changes", "measure_globals", "measure_locals", "measure_plan"):
        monkeypatch.setattr(f"kvfold.export.search.measure_changes.{name}", refuse)
    again = plan(folder, "--target-bytes", "300@1k")
    assert again.exit_code == 0, again.output
    tables = "What changing a layer costs"
    assert again.output.split(tables)[1] == first.output.split(tables)[1]


def test_a_search_says_first_what_it_measures_and_how_far_it_is(first: Result, folder: Path) -> None:
    lines = first.output.splitlines()
    assert lines[0].startswith("To do") and lines[1] == "  have 640 tokens of text"
    assert re.fullmatch(r"  measure 15 changes of layers on 128 tokens: about \d+\.\d s", lines[2]), lines[2]
    assert UNKNOWN in first.output
    for name in ("text", "layers", "globals", "plans"):
        assert any(line.startswith(f"  > {name}") for line in lines)
        assert any(line.startswith(f"  + {name}") for line in lines)
    again = plan(folder, "--target-bytes", "300@1k")
    assert "To do" not in again.output


def test_a_killed_search_goes_on(first: Result, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed search leaves half of what a finished one measured; that half is kept as it is."""
    whole = read_ledger(folder)
    names = list(whole.costs)
    kept = {name: whole.costs[name] for name in names[: len(names) // 2]}
    half = whole.model_copy(update={"costs": kept, "answers": {}})
    (folder / "resumed.yaml.measured.json").write_text(half.model_dump_json())
    resumed = plan(folder, "--target-bytes", "300@1k", output="resumed.yaml")
    assert resumed.exit_code == 0, resumed.output
    assert read_ledger(folder, "resumed.yaml") == whole
    assert (folder / "resumed.yaml").read_text() == (folder / "found.yaml").read_text()


def test_ctrl_c_keeps_what_was_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Station.measure

    def interrupted(station: Station, change: Change) -> Cost:
        if change.layers[0] == 2:
            raise KeyboardInterrupt
        return measure(station, change)

    monkeypatch.setattr(Station, "measure", interrupted)
    assert plan(folder, "--max-kl", "1", output="stopped.yaml").exit_code == 1
    kept = read_ledger(folder, "stopped.yaml").costs
    assert [name for name in kept if name != "unfolded"] == [
        *("windowed 0 to 32", "int8 0", "bank 0", "bank 0 1"),
        *("windowed 1 to 32", "int8 1", "bank 1", "bank 1 2"),
    ]
    assert not (folder / "stopped.yaml").exists()


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            "{kl_tokens: 640, text: {tokens: 640}}",
            r"text\.tokens is 640, of which kl_tokens 640 are held out",
        ),
        ("{prompt_length: 500}", r"prompt_length is 500, less than twice measured_window 512"),
        ("{text: {source: absent.txt}}", r"search\.text\.source: there is no file"),
        ("{windw: 1}", r"search\.windw: unknown key"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(search: str, message: str, folder: Path) -> None:
    (folder / "bad.yaml").write_text(f"{RECIPE}search: {search}\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(folder / "bad.yaml"))


def test_prompts_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    for length, message in ((1024, "the model's context is 512"), (140, "the recipe asks for 140; raise it")):
        path = write(tmp_path)
        path.write_text(path.read_text().replace("prompt_length: 400", f"prompt_length: {length}"))
        with pytest.raises(RecipeError, match=message):
            CliRunner().invoke(
                cli,
                ["plan", str(path), "-o", str(tmp_path / "x.yaml"), "--max-kl", "1"],
                catch_exceptions=False,
            )


def test_other_settings_measure_anew(first: Result, folder: Path) -> None:
    before = read_ledger(folder)
    (folder / "other").mkdir()
    other = write(folder / "other")
    other.write_text(other.read_text().replace("prompts: 2", "prompts: 1"))
    ledger = folder / "other" / "found.yaml.measured.json"
    ledger.write_text(before.model_dump_json())
    assert plan(folder / "other", "--max-kl", "9").exit_code == 0
    assert LedgerFile.model_validate_json(ledger.read_bytes()).key != before.key


def test_the_smallest_plan_below_a_kl(first: Result, folder: Path) -> None:
    sizes = []
    for limit in ("0.02", "9"):
        result = plan(folder, "--max-kl", limit, "--share-distant-globals")
        assert result.exit_code == 0, result.output
        sizes.append(plan_for(load_recipe(str(folder / "found.yaml")).plan, SHAPE).kv_bytes(8192))
    assert sizes[0] > sizes[1]


def test_what_cannot_be_reached_is_said(first: Result, folder: Path) -> None:
    with pytest.raises(
        PlanError, match=r"no plan meets 1 at 1,024; .* smallest reaches \d+\.\d bytes a token"
    ):
        CliRunner().invoke(
            cli,
            ["plan", str(folder / "tiny.yaml"), "-o", str(folder / "found.yaml"), "--target-bytes", "1@1k"],
            catch_exceptions=False,
        )
    with pytest.raises(PlanError, match=r"no measured plan stays at 1e-09 nat a token; the lowest KL is"):
        CliRunner().invoke(
            cli,
            ["plan", str(folder / "tiny.yaml"), "-o", str(folder / "found.yaml"), "--max-kl", "1e-9"],
            catch_exceptions=False,
        )


def test_a_goal_is_demanded(folder: Path) -> None:
    assert "--target-bytes, --max-kl, or both" in plan(folder).output
    assert "is no BYTES@LENGTH" in plan(folder, "--target-bytes", "2048").output


def test_a_recipe_that_cannot_take_a_plan_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").touch()
    write_tiny_recipe(tmp_path, RECIPE + SEARCH + "heal: {adapter: adapter.safetensors}\n")
    with pytest.raises(RecipeError, match="adapter"):
        CliRunner().invoke(
            cli,
            ["plan", str(tmp_path / "tiny.yaml"), "-o", str(tmp_path / "x.yaml"), "--max-kl", "1"],
            catch_exceptions=False,
        )
