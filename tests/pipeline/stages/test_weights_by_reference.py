"""A bundle's weights are its checkpoint's, but for what changed: one that is gone or another is named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace import workspace as workspace_module
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.workspace import FOLD_FOLDER, QUANTIZE_FOLDER, SMOOTHING, Workspace
from kvfold.plugins.contract.errors import CheckpointError
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.tiny_recipe import write_tiny_recipe


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.yaml`, its checkpoint, and `bundle`, calibrated."""
    folder = tmp_path_factory.mktemp("reference")
    write_tiny_recipe(folder)
    assert run(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    text = (tmp_path / "copy/tiny.yaml").read_text()
    assert run(tmp_path / "copy") and text, "another path is another checkpoint, with the same content"
    return tmp_path / "copy"


def run(folder: Path) -> list[str]:
    """Calibrate; the stages that ran."""
    recipe = load_recipe(str(folder / "tiny.yaml"))
    outcomes = run_stages(recipe, folder / "bundle", STAGES, QuietDisplay(), "quantize")
    return [outcome.name for outcome in outcomes if outcome.ran]


def opened(folder: Path) -> Workspace:
    return Workspace(load_recipe(str(folder / "tiny.yaml")), folder / "bundle")


def test_no_file_holds_what_did_not_change(made: Path) -> None:
    """In `character` attention changes; MLPs, norms and the embedding are read from the checkpoint."""
    sizes = {path: path.stat().st_size for path in (made / "bundle").rglob("*.safetensors")}
    checkpoint = (made / "model/model.safetensors").stat().st_size
    assert sum(sizes.values()) < checkpoint / 2
    workspace, original = opened(made), read_checkpoint(opened(made)).weights
    name, factors = "model.layers.0.mlp.down_proj.weight", workspace.tensors(SMOOTHING)
    assert torch.equal(workspace.folded[name], original[name])
    assert torch.equal(workspace.weights[name], original[name] * factors[f"{name}:columns"])
    assert not (made / "bundle" / FOLD_FOLDER).exists() and not (made / "bundle" / QUANTIZE_FOLDER).exists()


def test_other_weights_under_the_same_name_are_calibrated_anew(folder: Path) -> None:
    assert not run(folder)
    path = folder / "model/model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name] * 2
    save_file(tensors, path, {"format": "pt"})
    assert {"checkpoint", "fold", "quantize"} <= set(run(folder))
    assert torch.equal(opened(folder).folded[name], tensors[name])


def test_a_checkpoint_that_is_gone_is_named(folder: Path) -> None:
    (folder / "model/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        run(folder)
    shutil.rmtree(folder / "model")
    with pytest.raises(CheckpointError, match="model"):
        run(folder)


def test_a_checkpoint_that_changes_while_it_is_read_is_named(folder: Path) -> None:
    weights = opened(folder).weights
    path = folder / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        weights["model.layers.0.mlp.down_proj.weight"]
    path.unlink()
    with pytest.raises(CheckpointError, match="is gone"):
        weights["model.layers.0.mlp.down_proj.weight"]


def test_another_revision_of_a_hub_s_model_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = opened(made)
    checkpoint = read_checkpoint(workspace)
    model = workspace.recipe.model.model_copy(update={"source": "org/name"})
    of_hub = Workspace(workspace.recipe.model_copy(update={"model": model}), made / "bundle")
    monkeypatch.setattr(workspace_module, "read_checkpoint", lambda _: replace(checkpoint, source="org/name"))
    assert of_hub.weights
    newer = replace(checkpoint, source="org/name", files=checkpoint.files[:-1])
    monkeypatch.setattr(workspace_module, "read_checkpoint", lambda _: newer)
    other = Workspace(of_hub.recipe, made / "bundle")
    with pytest.raises(CheckpointError, match="org/name, of which the hub now gives another revision"):
        len(other.weights)
