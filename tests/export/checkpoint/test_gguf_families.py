"""Every family as a GGUF file: config and tensors are those of the folder that it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.gguf_config import config_from_gguf, config_of_header
from kvfold.export.checkpoint.gguf_header import GgufHeader, read_gguf_header
from kvfold.export.checkpoint.gguf_keys import NEUTRAL, PATTERN, SCALES, WINDOW, GgufTensorFacts
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.model.families import FAMILIES
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError
from tests.export.tiny_checkpoints import MODELS, random_model, write_folder
from tests.export.tiny_gguf import write_gguf

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0],
    "long_factor": [1.0, 1.5, 2.5, 3.5, 5.0, 7.0, 9.0, 12.0],
}
SIX = {"num_hidden_layers": 6}
# What GGUF files can say: llama.cpp derives gemma's scale, and smollm3's layers without RoPE, by itself.
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
    ("granite", SIX | {"head_dim": 8}),
    ("granite-biased", SIX | {"head_dim": 8}),
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


def test_a_llama_with_windows_is_a_mistral(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "model.gguf", random_model("llama"), GGMLQuantizationType.F32, sliding_window=64
    )
    config = load_checkpoint(path).config
    assert (config.family, config.sliding_windows) == ("mistral", (64, 64))


def test_a_pattern_says_which_layers_have_the_window(tmp_path: Path) -> None:
    model = random_model("gemma3_text", query_pre_attn_scalar=16, num_hidden_layers=4, layer_types=None)
    for pattern in ([True, False, True, True], 3):
        path = write_gguf(
            tmp_path / "model.gguf", model, GGMLQuantizationType.F32, sliding_window_pattern=pattern
        )
        slides = load_checkpoint(path).config.sliding_windows
        assert slides == ((64, None, 64, 64) if isinstance(pattern, list) else (64, 64, None, 64))


@pytest.mark.parametrize(
    ("name", "metadata", "named"),
    [
        ("qwen2", {"sliding_window": 64}, "does not say which layers have it"),
        ("llama", {"causal_attention": False}, r"attention\.causal = False: only causal"),
        ("llama", {"rope_scaling_attn_factors": 1.5}, r"rope\.scaling\.attn_factor = 1\.5"),
        ("qwen3", {"rope_scaling_yarn_ext_factor": 0.5}, "YaRN of another mix"),
        ("llama", {"embedding_scale": 12.0}, "embedding_multiplier = 12"),
        ("granite", {"rope_scaling_finetuned": False}, "granite without RoPE"),
        ("olmo2", {"sliding_window": 64}, "olmo2 with sliding_window = 64"),
        ("llama", {"head_count": [4, 2]}, r"different attention\.head_count per layer"),
        ("llama", {"value_length": 8}, r"attention\.value_length = 8"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_name(
    name: str, metadata: dict[str, Any], named: str, tmp_path: Path
) -> None:
    model = random_model(name, rope_scaling=YARN) if name == "qwen3" else random_model(name)
    with pytest.raises(UnsupportedModelError, match=named):
        load_checkpoint(write_gguf(tmp_path / "model.gguf", model, GGMLQuantizationType.F32, **metadata))


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"general.architecture": "qwen3moe"}, r"GGUF architecture qwen3moe .* a mixture of experts \(MoE\)"),
        ({"general.architecture": "qwen2vl"}, "GGUF architecture qwen2vl is not supported"),
        ({"general.architecture": "clip"}, "the projector of a multimodal model"),
        ({"general.architecture": "llama", "general.type": "mmproj"}, "the projector of a multimodal model"),
        ({"general.architecture": "llama", "general.type": "adapter"}, "llama-export-lora"),
    ],
)
def test_other_files_are_refused_by_name(metadata: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        config_of_header(GgufHeader(Path("model.gguf"), metadata, {}, 0))


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_positions_are_not_divided_by_0(key: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), GGMLQuantizationType.F32)
    said = read_gguf_header(path).metadata | {f"llama.{key}": 0.0}
    assert config_from_gguf(said, FACTS).ropes[0].scaling is None, "older files say so of plain RoPE"
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.factor is 0 with RoPE of type linear"):
        config_from_gguf(said | {"llama.rope.scaling.type": "linear"}, FACTS)


@pytest.mark.parametrize(
    "value", [None, -1, 0, 1.5, 1e308, 2**63, True, "", "x", [], [1, 2], [[]], [True, 2.5]]
)
def test_no_value_of_a_file_ends_in_an_untyped_error(value: object, tmp_path: Path) -> None:
    for name in ("llama", "qwen2", "gemma2", "gemma3_text", "phi3", "granite", "qwen3"):
        scaling = {"rope_scaling": YARN} if name == "qwen3" else {}
        path = write_gguf(tmp_path / "model.gguf", random_model(name, **scaling), GGMLQuantizationType.F32)
        header = read_gguf_header(path)
        architecture = header.metadata["general.architecture"]
        for key in (*KEYS, *(key for key in header.metadata if key.startswith(f"{architecture}."))):
            said = header.metadata | {f"{architecture}.{key.removeprefix(f'{architecture}.')}": value}
            for facts in (FACTS, replace(FACTS, long_factors=(1.0,) * 8, short_factors=(1.0,) * 8)):
                try:
                    config_from_gguf(said, facts)
                except (CheckpointError, UnsupportedModelError) as error:
                    assert str(error)


FACTS = GgufTensorFacts(vocab_size=97, tie_word_embeddings=True)
KEYS = (
    *NEUTRAL,
    *SCALES.values(),
    *(WINDOW, PATTERN, "rope.dimension_count", "rope.freq_base", "rope.freq_base_swa", "rope.scale_linear"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor"),
    *("rope.scaling.original_context_length", "rope.scaling.yarn_log_multiplier"),
)
