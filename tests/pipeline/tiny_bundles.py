"""Recipes for a tiny random llama whose stages run in seconds, and how a test runs them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import StageOutcome, run_stages
from kvfold.pipeline.workspace.stage import target_stage
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.pipeline.fake_stages import QuietDisplay

RECIPE = """
model: {source: model}
plan: {preset: %s, sliding_window: 32, sink_size: 4, global_every: 2}
calibration: {source: text.txt, tokens: 512, sequence_length: 64}
quantize: {linears: %s}
validate:
  source: text.txt
  tokens: 384
  sequence_length: 192
  prefill_chunk: 40
  thresholds: {max_perplexity_ratio: null, max_engine_kl: %s, max_logit_difference: %s}
"""
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
WORDS = ("the", "a", "cab", "tab", "dab", "of", "folded", "cache", "abacus")
REPORT = target_stage("report", "cpu")


def write_recipes(folder: Path) -> None:
    """A chat model and a text, beside the recipes that name them: exact, small, strict."""
    write_folder(folder / "model", random_model("llama", num_hidden_layers=4))
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    words = random.Random(0).choices(WORDS, k=4000)
    (folder / "text.txt").write_text(" ".join(words))
    (folder / "exact.yaml").write_text(RECIPE % ("horizon, kv_dtype: float32", "none", 1e-4, 2e-3))
    (folder / "small.yaml").write_text(RECIPE % ("character", "int8", 0.05, "null"))
    (folder / "strict.yaml").write_text(RECIPE % ("character", "int8", 1e-9, "null"))


def run_recipe(folder: Path, name: str, bundle: Path, until: str = REPORT) -> list[StageOutcome]:
    """Bring a recipe's bundle up to date."""
    recipe = load_recipe(str(folder / f"{name}.yaml"))
    return run_stages(recipe, bundle, STAGES, QuietDisplay(), until)
