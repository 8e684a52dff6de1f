"""Tiny random checkpoints of every family, written to disk as their publishers write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.smollm3.configuration_smollm3 import SmolLM3Config
from transformers.models.smollm3.modeling_smollm3 import SmolLM3ForCausalLM

from kvfold.export.model.families import FAMILIES

CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
    "granite": (GraniteConfig, GraniteForCausalLM),
}
# What a random model of a family needs beside SHAPE: its multipliers, windows and special tokens in reach.
EXTRAS: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 64, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": 64, "query_pre_attn_scalar": 12, "sliding_window_pattern": 2},
    "phi3": {"pad_token_id": 0},
    "smollm3": {"pad_token_id": 0, "no_rope_layer_interval": 2},
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    },
}
# Families whose checkpoints are in normal form as they are, with one kind of layer.
PLAIN = ("llama", "mistral", "qwen2", "qwen3")
# Models by a name of their own: every family as it is, and with all biases that its config may ask for.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {family: (family, {}) for family in CLASSES} | {
    f"{family.name}-biased": (family.name, dict.fromkeys(family.bias_keys, True))
    for family in FAMILIES
    if family.bias_keys
}
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rope_theta": 5000.0,
    "sliding_window": None,
    "initializer_range": 0.2,
}


def random_model(name: str, **changes: Any) -> PreTrainedModel:
    """A transformers model of MODELS with random weights, biases and norms included."""
    family, biases = MODELS[name]
    config_class, model_class = CLASSES[family]
    torch.manual_seed(0)
    config = config_class(**(SHAPE | EXTRAS.get(family, {}) | biases | changes))
    config._attn_implementation = "eager"
    model: PreTrainedModel = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def write_folder(folder: Path, model: PreTrainedModel, **options: Any) -> Path:
    """Save a model as Hugging Face does, with a byte-level tokenizer."""
    model.save_pretrained(folder, **options)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def tiny_tokenizer() -> Tokenizer:
    """95 ASCII bytes, one merge of two of them, and a special token that ends a turn."""
    vocab = {chr(code) if code > 32 else "Ġ": code - 32 for code in range(32, 127)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab | {"ab": 95}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|im_end|>"])
    return tokenizer
