"""Every family as a GGUF file: config and tensors are those of the folder that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.model.families import FAMILIES
from tests.export.tiny_checkpoints import MODELS, random_model, write_folder
from tests.export.tiny_gguf import write_gguf

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0],
    "long_factor": [1.0, 1.5, 2.5, 3.5, 5.0, 7.0, 9.0, 12.0],
}
SIX = {"num_hidden_layers": 6}
# What GGUF files of a family can say: llama.cpp derives gemma's scale and smollm3's layers without RoPE itself.
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, SIX) for name, (family, _) in MODELS.items() if family in ("llama", "qwen2", "qwen3", "olmo2")),
    ("mistral", {"sliding_window": 64}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("qwen2", {"rope_scaling": YARN}),
    ("qwen3", {"rope_scaling": YARN}),
    ("qwen2", SIX | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}),
    ("gemma2", SIX | {"query_pre_attn_scalar": 16, "sliding_window": 64}),
    ("gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 4096, "max_position_embeddings": 8192}),
    ("gemma2", {"query_pre_attn_scalar": 8, "num_hidden_layers": 46, "sliding_window": 64}),
    ("gemma3_text", {"query_pre_attn_scalar": 16, "num_hidden_layers": 7, "sliding_window_pattern": 6}),
    ("gemma3_text", {"query_pre_attn_scalar": 16, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("phi3", {"head_dim": 8}),
    ("phi3", {"sliding_window": 47, "head_dim": 8}),
    ("phi3", {"partial_rotary_factor": 0.5, "head_dim": 8}),
    ("phi3", {"hidden_size": 64, "rope_scaling": LONG, "original_max_position_embeddings": 128}),
    ("phi3", {"hidden_size": 64, "rope_scaling": LONG, "original_max_position_embeddings": 256}),
    ("smollm3", SIX | {"no_rope_layer_interval": 4}),
    ("granite", SIX),
    ("granite-biased", SIX),
]


def both_forms(name: str, changes: dict[str, Any], folder: Path) -> tuple[Checkpoint, Checkpoint]:
    model = random_model(name, **changes)
    path = write_gguf(folder / "model.gguf", model, GGMLQuantizationType.F32)
    return load_checkpoint(write_folder(folder / "model", model)), load_checkpoint(path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_a_gguf_file_is_the_folder_it_was_made_from(
    name: str, changes: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    folder, file = both_forms(name, changes | {"tie_word_embeddings": tied}, tmp_path)
    same = {"family": folder.config.family} if folder.config.family == "mistral" else {}
    assert file.config.model_copy(update=same) == folder.config
    assert file.weights.keys() == folder.weights.keys()
    for tensor, value in folder.weights.items():
        assert torch.equal(file.weights[tensor], value), tensor


def test_every_family_has_a_case() -> None:
    assert {MODELS[name][0] for name, _ in CASES} == {family.name for family in FAMILIES}
