"""Every family, from the files its publishers write to the logits that transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import LlamaForCausalLM, PreTrainedModel

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.gguf_tensors import deinterleave
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.model.decoder import Decoder
from kvfold.export.model.families import FAMILIES
from kvfold.export.model.rope import inverse_frequencies
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from tests.export.tiny_checkpoints import CLASSES, MODELS, PLAIN, random_model, write_folder
from tests.export.tiny_gguf import interleave, write_gguf
from tests.tiny_model import dense_logits

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


PLAIN_MODELS = [name for name, (family, _) in MODELS.items() if family in PLAIN]


def largest_difference(checkpoint: Checkpoint, model: PreTrainedModel) -> float:
    plan = build_plan(Preset(preset="identity"), checkpoint.config.attention_shape)
    decoder = Decoder.from_weights(checkpoint.config, plan, checkpoint.weights)
    input_ids = torch.randint(0, 97, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return float((dense_logits(decoder, input_ids) - model(input_ids).logits).abs().max())


def test_every_family_has_a_random_model() -> None:
    assert CLASSES.keys() == {family.name for family in FAMILIES}


@pytest.mark.parametrize("rope", [None, {"rope_type": "linear", "factor": 4.0}, LLAMA3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", PLAIN_MODELS)
def test_family_has_the_logits_of_transformers(
    name: str, tied: bool, rope: dict[str, Any] | None, tmp_path: Path
) -> None:
    model = random_model(name, tie_word_embeddings=tied, rope_scaling=rope)
    checkpoint = load_checkpoint(write_folder(tmp_path, model))
    assert checkpoint.config.family == MODELS[name][0]
    assert largest_difference(checkpoint, model) <= 1e-4


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    model = random_model("llama")
    checkpoint = load_checkpoint(write_folder(tmp_path, model, max_shard_size="20KB"))
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert largest_difference(checkpoint, model) <= 1e-4


def test_a_model_saved_in_one_file_over_its_shards_is_the_one_that_transformers_loads(tmp_path: Path) -> None:
    """The shards go, their index stays; the other way round, both models stay whole."""
    older, newer = random_model("llama"), random_model("llama")
    newer.get_parameter("model.norm.weight").data.mul_(2)
    for name, sizes in (("joined", ("20KB", "1GB")), ("cut", ("1GB", "20KB"))):
        for model, size in zip((older, newer), sizes, strict=True):
            folder = write_folder(tmp_path / name, model, max_shard_size=size)
        assert {"model.safetensors", "model.safetensors.index.json"} <= {p.name for p in folder.iterdir()}
        assert largest_difference(load_checkpoint(folder), LlamaForCausalLM.from_pretrained(folder)) <= 1e-4


def test_bfloat16_weights_are_widened(tmp_path: Path) -> None:
    model = random_model("qwen3")
    model.bfloat16()
    checkpoint = load_checkpoint(write_folder(tmp_path, model))
    stored = model.state_dict()
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in checkpoint.weights.items())


def test_a_tied_head_that_is_stored_too_is_no_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = random_model("llama", tie_word_embeddings=True)
    path = write_folder(tmp_path, model) / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    assert largest_difference(load_checkpoint(tmp_path), model) <= 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", PLAIN_MODELS)
def test_gguf_has_the_logits_of_transformers(name: str, tied: bool, tmp_path: Path) -> None:
    model = random_model(name, tie_word_embeddings=tied)
    checkpoint = load_checkpoint(write_gguf(tmp_path / "model.gguf", model, GGMLQuantizationType.F32))
    family = MODELS[name][0]
    assert checkpoint.config.family == {"mistral": "llama"}.get(family, family)
    assert largest_difference(checkpoint, model) <= 1e-4


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
def test_gguf_is_dequantised(kind: str, tmp_path: Path) -> None:
    model = random_model("llama", intermediate_size=64)
    quantisation = GGMLQuantizationType[kind]
    checkpoint = load_checkpoint(write_gguf(tmp_path / "model.gguf", model, quantisation))
    stored = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    exact = gguf.dequantize(gguf.quantize(stored, quantisation), quantisation)
    assert torch.equal(checkpoint.weights["model.layers.1.mlp.down_proj.weight"], torch.from_numpy(exact))


def test_gguf_with_linear_rope(tmp_path: Path) -> None:
    model = random_model("llama", rope_scaling={"rope_type": "linear", "factor": 4.0})
    path = write_gguf(
        tmp_path / "model.gguf",
        model,
        GGMLQuantizationType.F32,
        rope_scaling_type=gguf.RopeScalingType.LINEAR,
        rope_scaling_factor=4.0,
    )
    assert largest_difference(load_checkpoint(path), model) <= 1e-4


def test_gguf_with_llama3_rope_recovers_its_parameters(tmp_path: Path) -> None:
    rope = LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}
    plain, scaled = random_model("llama"), random_model("llama", rope_scaling=rope)
    divisors = plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    path = write_gguf(
        tmp_path / "model.gguf", scaled, GGMLQuantizationType.F32, rope_factors=divisors.numpy()
    )
    checkpoint = load_checkpoint(path)
    (found,) = checkpoint.config.ropes
    assert found.scaling is not None
    assert found.scaling.model_dump() == rope
    torch.testing.assert_close(
        inverse_frequencies(checkpoint.config, found), scaled.model.rotary_emb.inv_freq
    )


def test_deinterleave_undoes_llama_cpps_order() -> None:
    weight = torch.randn(32, 5)
    assert torch.equal(deinterleave(interleave(weight, 4), 4), weight)
    assert interleave(weight, 4)[1].equal(weight[4])


def test_fingerprint_follows_every_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, random_model("llama"))
    before = load_checkpoint(folder).fingerprint
    assert load_checkpoint(folder).fingerprint == before
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert load_checkpoint(folder).fingerprint != before
