"""Families that differ from llama, and every RoPE: logits and greedy tokens are those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
)

from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.model.decoder import Decoder
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError
from kvfold.plugins.contract.fold_plan import FoldPlan
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.tiny_model import dense_logits

# Seven heads that share one key, of a size that is not width / heads; a vocabulary padded beyond the tokens.
ODD = {
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 4,
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
    "head_dim": 10,
    "vocab_size": 128,
}
THREE_HEADS = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def longrope(pairs: int) -> dict[str, Any]:
    """Phi-3's three fields."""
    short, long = ([start + 0.25 * index for index in range(pairs)] for start in (1.0, 2.5))
    return {"rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": long}}


LONG, SHORT = {"original_max_position_embeddings": 64}, {"original_max_position_embeddings": 256}
NO_ROPE = {"no_rope_layers": [1, 0, 0, 1], "use_sliding_window": True, "sliding_window": 24}
TYPES = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral-window": ("mistral", ODD | {"sliding_window": 40}),
    "qwen2-upper-windows": (
        "qwen2",
        ODD | {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "qwen3-layer-types": (
        "qwen3",
        ODD | {"use_sliding_window": True, "sliding_window": 24, "layer_types": TYPES},
    ),
    "gemma2": ("gemma2", ODD),
    "gemma2-untied-biased": ("gemma2", ODD | UNTIED | {"attention_bias": True}),
    "gemma2-uncapped": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("gemma3_text", ODD | {"num_hidden_layers": 7}),
    "gemma3-scaled-untied": (
        "gemma3_text",
        UNTIED | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": 2.0},
    ),
    "gemma3-layer-types": ("gemma3_text", ODD | {"layer_types": TYPES, "attention_bias": True}),
    "phi3": ("phi3", ODD),
    "phi3-window": ("phi3", ODD | {"sliding_window": 47}),
    "phi3-partial": ("phi3", THREE_HEADS | TIED | {"partial_rotary_factor": 0.75}),
    "phi3-long": ("phi3", THREE_HEADS | LONG | longrope(8)),
    "phi3-short": ("phi3", THREE_HEADS | SHORT | longrope(8)),
    "phi4-mini": (
        "phi3",
        {
            **THREE_HEADS,
            **LONG,
            **TIED,
            **longrope(6),
            "partial_rotary_factor": 0.75,
            "sliding_window": 262144,
        },
    ),
    "smollm3": ("smollm3", ODD),
    "smollm3-windows": ("smollm3", ODD | UNTIED | NO_ROPE | {"attention_bias": True, "mlp_bias": True}),
    "olmo2": ("olmo2", ODD),
    "olmo2-biased": (
        "olmo2",
        TIED | {"attention_bias": True, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "granite": ("granite", ODD),
    "granite-tied-biased": ("granite", ODD | TIED | {"attention_bias": True, "mlp_bias": True}),
    "yarn": ("qwen2", ODD | {"rope_scaling": YARN}),
    "yarn-untold-context": ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
    "yarn-mscale": ("llama", {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}}),
    "yarn-attention-factor": ("qwen3", {"rope_scaling": YARN | {"attention_factor": 1.4, "beta_fast": 8.0}}),
    "yarn-untruncated": ("qwen3", {"rope_scaling": YARN | {"truncate": False, "beta_slow": 2.0}}),
    "dynamic": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "longrope-by-factor": (
        "llama",
        {"rope_scaling": {**longrope(8)["rope_scaling"], "rope_type": "longrope", "factor": 8.0}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    model = random_model(family, **changes)
    checkpoint = load_checkpoint(write_folder(tmp_path, model))
    config = checkpoint.config
    assert config.family == family
    decoder = Decoder.from_weights(config, FoldPlan.of(config.attention_shape), checkpoint.weights)
    tokens = torch.randint(0, 97, (2, 120), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(tokens).logits
        assert float(logits.abs().max()) > 0.5, "logits so small that a difference would not show"
        assert float((dense_logits(decoder, tokens) - logits).abs().max()) <= 1e-4
        assert torch.equal(greedy(decoder, tokens, 8), generated(model, tokens, 8))


def test_the_text_model_of_a_multimodal_gemma3_is_what_its_refusal_advises(tmp_path: Path) -> None:
    text = {**ODD, "pad_token_id": 0, "sliding_window": 64}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model: Any = Gemma3ForConditionalGeneration(config)
    whole = write_folder(tmp_path / "whole", model.eval())
    with pytest.raises(UnsupportedModelError, match=r"gemma3_text.*Gemma3ForCausalLM.from_pretrained"):
        load_checkpoint(whole)
    checkpoint = load_checkpoint(write_folder(tmp_path / "text", Gemma3ForCausalLM.from_pretrained(whole)))
    decoder = Decoder.from_weights(
        checkpoint.config, FoldPlan.of(checkpoint.config.attention_shape), checkpoint.weights
    )
    tokens = torch.randint(0, 97, (2, 120), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert float((dense_logits(decoder, tokens) - model(tokens).logits).abs().max()) <= 1e-4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weight: weight[:-1], "v_proj.weight has shape .9, 36., its config promises .10, 36."),
        (lambda weight: weight[:70], "k_proj.weight has shape .0, 36., its config promises .10, 36."),
        (lambda weight: weight[0], "q_proj.weight has shape"),
    ],
)
def test_a_fused_tensor_of_another_size_is_named(
    change: Callable[[Tensor], Tensor], named: str, tmp_path: Path
) -> None:
    path = write_folder(tmp_path, random_model("phi3", **ODD)) / "model.safetensors"
    tensors, name = load_file(path), "model.layers.1.self_attn.qkv_proj.weight"
    save_file(tensors | {name: change(tensors[name]).contiguous()}, path)
    with pytest.raises(CheckpointError, match=f"tensor model.layers.1.self_attn.{named}"):
        load_checkpoint(tmp_path)


def test_a_fused_tensor_that_is_missing_is_named_by_its_parts(tmp_path: Path) -> None:
    path = write_folder(tmp_path, random_model("phi3", **ODD)) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.2.mlp.gate_up_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"missing tensors model\.layers.2.mlp.gate_proj.weight"):
        load_checkpoint(tmp_path)


def greedy(decoder: Decoder, tokens: Tensor, count: int) -> Tensor:
    for _ in range(count):
        following = dense_logits(decoder, tokens)[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, following], dim=1)
    return tokens


def generated(model: PreTrainedModel, tokens: Tensor, count: int) -> Tensor:
    model.generation_config.eos_token_id = None  # type: ignore[union-attr]  # random tokens end nothing
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    output: Tensor = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)  # type: ignore[operator]
    return output
