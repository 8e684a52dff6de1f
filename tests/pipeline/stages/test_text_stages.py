"""The stages that prepare texts: what the model writes comes from one engine, which no manifest names."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.show.watch import open_watch
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.studies.search.goal import Goal
from kvfold.pipeline.studies.search.search import Search
from kvfold.pipeline.texts import writer_engine
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.workspace import (
    CALIBRATION_TOKENS,
    HELDOUT_TOKENS,
    TRAINING_TOKENS,
    WRITER_FOLDER,
    Workspace,
)
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import open_bundle
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.tiny_recipe import write_tiny_recipe

RECIPE = """
model: {source: model}
plan: {preset: mqa}
calibration: [{tokens: 128, sequence_length: 32}, {source: text.txt, tokens: 64, sequence_length: 32}]
heal: {text: {tokens: 64, sequence_length: 32, seed: 2}}
validate: {tokens: 96, sequence_length: 48, seed: 1}
search: {kl_tokens: 64, text: {tokens: 128, sequence_length: 64}}
"""


def test_texts_of_a_bundle_share_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(str(write_tiny_recipe(tmp_path, RECIPE)))
    root = tmp_path / "bundle"
    build, built = writer_engine._build, 0

    def counted(checkpoint: Checkpoint, plan: FoldPlan, directory: Path) -> None:
        nonlocal built
        built += 1
        build(checkpoint, plan, directory)

    monkeypatch.setattr(writer_engine, "_build", counted)
    for stage in ("calibration", "training", "heldout"):
        run_stages(recipe, root, STAGES, QuietDisplay(), until=stage)
    workspace = Workspace(recipe, root)
    shapes = [
        tuple(tensor.shape)
        for name in (CALIBRATION_TOKENS, TRAINING_TOKENS, HELDOUT_TOKENS)
        for tensor in workspace.tensors(name).values()
    ]
    assert shapes == [(6, 32), (2, 32), (2, 48)]
    assert built == 1
    assert any((root / WRITER_FOLDER).rglob("model.onnx"))
    assert not any(name.startswith(WRITER_FOLDER) for name in open_bundle(root).manifest.files)


def test_a_training_text_of_two_lengths_has_a_tensor_of_each(tmp_path: Path) -> None:
    text = """
      - {source: text.txt, tokens: 96, sequence_length: 48}
      - {source: text.txt, tokens: 64, sequence_length: 32}
      - {source: text.txt, tokens: 40, sequence_length: 32, seed: 5}
  seconds: 60
  held_out: {source: text.txt, tokens: 64, sequence_length: 64}
"""
    own = RECIPE.replace("heal: {text: {tokens: 64, sequence_length: 32, seed: 2}}", f"heal:\n  text:{text}")
    recipe = load_recipe(str(write_tiny_recipe(tmp_path, own)))
    run_stages(recipe, tmp_path / "bundle", STAGES, QuietDisplay(), until="training")
    tensors = Workspace(recipe, tmp_path / "bundle").tensors(TRAINING_TOKENS)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "tokens.32": (4, 32),
        "tokens.48": (2, 48),
        "held_out": (1, 64),
    }


def test_a_search_keeps_its_text_alone(tmp_path: Path) -> None:
    recipe = load_recipe(str(write_tiny_recipe(tmp_path, RECIPE)))
    ledger = tmp_path / "found.yaml.measured.json"
    with open_watch(Console(quiet=True)) as watch:
        search = Search(recipe, Goal((), max_kl=1.0), ledger, watch)
        search._read_text()
    assert [len(row) for row in search._ledger.file.tokens] == [64, 64]
    assert not ledger.with_suffix(".writer").exists()
