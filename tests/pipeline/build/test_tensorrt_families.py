"""A tiny random model of every family, built for TensorRT-RTX and SM 80; executed nowhere here."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.stage import target_stage
from kvfold.runtime.bundle import open_bundle
from kvfold.runtime.engine.engine_config import EngineConfig
from tests.export.tiny_checkpoints import CLASSES, random_model, write_folder
from tests.pipeline.fake_stages import QuietDisplay

pytest.importorskip("tensorrt_rtx", reason="would build a plan for every family; not installed")

TARGET, LAYERS = "tensorrt-rtx", 2
# Heads of 64 are the smallest that have GPU kernels.
SHAPE = {"num_hidden_layers": LAYERS, "hidden_size": 128, "intermediate_size": 256, "head_dim": 64}
CHANGES = {"phi3": {"num_attention_heads": 2, "num_key_value_heads": 1}}  # a head is hidden_size / heads
RECIPE = """
model: {source: model}
plan: {preset: %s, sliding_window: 32, sink_size: 0, global_every: 2}
tensorrt: {max_num_batched_tokens: 64, max_num_seqs: 4}
calibration: {source: text.txt, tokens: 256, sequence_length: 64}
validate: {source: text.txt, tokens: 128, sequence_length: 128, prefill_chunk: 40}
"""


def build_family(family: str, folder: Path) -> EngineConfig:
    """Facts of the engine of a model of the family, made in `folder`; a normed key keeps its heads."""
    write_folder(folder / "model", random_model(family, **{**SHAPE, **CHANGES.get(family, {})}))
    (folder / "text.txt").write_text(" ".join(random.Random(0).choices(("a", "cab", "tab"), k=4000)))
    normed = load_checkpoint(str(folder / "model")).config.qk_norm
    (folder / "tiny.yaml").write_text(RECIPE % ("horizon" if normed else "character"))
    recipe = load_recipe(str(folder / "tiny.yaml"), TARGET, (80,))
    run_stages(recipe, folder / "bundle", STAGES, QuietDisplay(), target_stage("build", TARGET))
    bundle = open_bundle(folder / "bundle", verify="full")
    return EngineConfig.load(bundle.directory(f"engine/{TARGET}"))


@pytest.mark.parametrize("family", CLASSES)
def test_a_family_becomes_an_engine(family: str, tmp_path: Path) -> None:
    facts = build_family(family, tmp_path)
    assert facts.passes["tensorrt_attention"] == LAYERS
    assert facts.tensorrt is not None and facts.tensorrt.architectures == (80,)
