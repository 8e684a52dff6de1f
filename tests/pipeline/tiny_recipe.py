"""A recipe for a tiny random llama, small enough to build an engine for every target within seconds."""

from __future__ import annotations

import random
from pathlib import Path

from tests.export.tiny_checkpoints import random_model, write_folder

# Windows, sinks and shared caches; TensorRT's profiles take steps of 64 tokens and 4 sequences.
RECIPE = """
model: {source: model}
plan: {preset: character, sliding_window: 32, sink_size: 4, global_every: 2}
tensorrt: {max_num_batched_tokens: 64, max_num_seqs: 4}
calibration: {source: text.txt, tokens: 512, sequence_length: 64}
validate:
  source: text.txt
  tokens: 384
  sequence_length: 192
  prefill_chunk: 40
  thresholds: {max_perplexity_ratio: null}
"""


def write_tiny_recipe(folder: Path, recipe: str = RECIPE, **changes: object) -> Path:
    """Write `tiny.yaml`, its checkpoint (with `changes` to its config) and its text.

    Heads of 64 are the smallest that have GPU kernels. Weights of 0.2, as other tests have them, make a model
    so chaotic that rounding activations to float16 moves it by 0.06 nat a token; with 0.1 it is 0.002.
    """
    shape = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "initializer_range": 0.1}
    write_folder(folder / "model", random_model("llama", num_hidden_layers=4, **shape, **changes))
    words = random.Random(0).choices(("a", "cab", "folded", "tab"), k=4000)
    (folder / "text.txt").write_text(" ".join(words))
    (folder / "tiny.yaml").write_text(recipe)
    return folder / "tiny.yaml"
