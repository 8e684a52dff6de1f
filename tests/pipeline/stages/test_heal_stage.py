"""Healing as a stage: absent it changes nothing; its adapter stands in for it; the command shows the loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvfold.export.weights.tensor_file import TensorFolder
from kvfold.pipeline.cli import cli
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.workspace import (
    ADAPTER,
    FOLD_FOLDER,
    FOLDED_WEIGHTS,
    HEAL_LOSSES,
    HEALED_WEIGHTS,
    Workspace,
)
from kvfold.plugins.contract.errors import AdapterError, RecipeError
from kvfold.runtime.bundle import open_bundle
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.tiny_recipe import RECIPE, write_tiny_recipe

HEAL = """
heal:
  layerwise_tokens: 512
  tokens: 1024
  int8_tokens: 512
  batch_tokens: 256
  rank: 8
  text: {source: text.txt, tokens: 1024, sequence_length: 64}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.yaml` and `healed.yaml`; the latter's bundle is `healed`, made by the command."""
    folder = tmp_path_factory.mktemp("recipes")
    write_tiny_recipe(folder)
    (folder / "healed.yaml").write_text(RECIPE + HEAL)
    result = CliRunner().invoke(cli, ["heal", str(folder / "healed.yaml"), "-o", str(folder / "healed")])
    assert result.exit_code == 0, result.output
    assert all(step in result.output for step in ("layerwise", "end_to_end", "int8"))
    return folder


def run(recipe: Path, root: Path, until: str) -> list[str]:
    """Bring a bundle up to date; the stages that ran."""
    outcomes = run_stages(load_recipe(str(recipe)), root, STAGES, QuietDisplay(), until)
    return [outcome.name for outcome in outcomes if outcome.ran]


def contents(folder: Path) -> dict[str, bytes]:
    """Of its files, by name; there are some."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found
    return found


def test_without_a_section_the_folded_weights_go_on_untouched(folder: Path, tmp_path: Path) -> None:
    run(folder / "tiny.yaml", tmp_path, "heal")
    stages = open_bundle(tmp_path).manifest.stages
    assert not stages["training"].files and not stages["heal"].files
    workspace = Workspace(load_recipe(str(folder / "tiny.yaml")), tmp_path)
    folded = workspace.folded
    assert all(tensor.equal(folded[name]) for name, tensor in workspace.healed.items())
    assert contents(tmp_path / FOLDED_WEIGHTS) == contents(folder / "healed" / FOLDED_WEIGHTS)
    assert not (tmp_path / FOLD_FOLDER).exists()


def test_a_healed_bundle_holds_its_loss_and_is_not_healed_again(folder: Path) -> None:
    root = folder / "healed"
    lines = [json.loads(line) for line in (root / HEAL_LOSSES).read_text().splitlines()]
    assert [line["step"] for line in lines] == ["layerwise"] * 2 + ["end_to_end"] * 4 + ["int8"] * 2
    faster = (folder / "healed.yaml").read_text().replace("rank: 8", "rank: 8\n  checkpoint_seconds: 9")
    (folder / "faster.yaml").write_text(faster)
    assert not run(folder / "faster.yaml", root, "heal")
    workspace = Workspace(load_recipe(str(folder / "healed.yaml")), root)
    changed = TensorFolder(root / HEALED_WEIGHTS)
    assert set(changed) == {name for name, tensor in workspace.healed.items() if name in changed}
    assert all(workspace.healed[name].equal(changed[name].float()) for name in changed)
    original = read_checkpoint(workspace).weights
    assert all(
        workspace.healed[name].equal(original[name]) for name in workspace.healed if name not in changed
    )


def test_the_adapter_gives_the_bytes_that_training_gave(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter.yaml").write_text(RECIPE + f"heal: {{adapter: healed/{ADAPTER}}}\n")
    run(folder / "adapter.yaml", tmp_path, "heal")
    assert not open_bundle(tmp_path).manifest.stages["heal"].files
    assert contents(tmp_path / FOLDED_WEIGHTS) == contents(folder / "healed" / HEALED_WEIGHTS)


def test_an_adapter_of_another_plan_is_refused(folder: Path, tmp_path: Path) -> None:
    other = RECIPE.replace("sliding_window: 32", "sliding_window: 16")
    (folder / "foreign.yaml").write_text(other + f"heal: {{adapter: healed/{ADAPTER}}}\n")
    with pytest.raises(AdapterError, match="is for plan"):
        run(folder / "foreign.yaml", tmp_path, "fold")


def test_the_command_asks_for_a_section(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["heal", str(folder / "tiny.yaml"), "-o", str(tmp_path)])
    assert isinstance(result.exception, RecipeError)
    assert "add a section" in str(result.exception)
