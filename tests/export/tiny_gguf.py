"""Tiny random checkpoints as GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from kvfold.export.checkpoint.gguf_tensors import OUTER_NAMES, layer_names
from kvfold.export.model.families import FAMILIES
from kvfold.export.model.family import Family
from tests.export.tiny_checkpoints import tiny_tokenizer

# Keys of a config.json that a file says by these of GGUFWriter's methods.
SAID = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention_scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "rope_local_base_freq": "rope_freq_base_swa",
}
INTERLEAVED = ("llama", "smollm3", "granite")


def interleave(weight: Tensor, heads: int) -> Tensor:
    """The row order that llama.cpp's converter gives Q and K of llama files, and their biases."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: gguf.GGMLQuantizationType,
    stored: Mapping[str, tuple[gguf.GGMLQuantizationType, np.ndarray]] = MappingProxyType({}),
    sentencepiece: Mapping[str, list[Any]] | None = None,
    **metadata: Any,
) -> Path:
    """Write a model as llama.cpp's converter does.

    Args:
        path: of the file.
        model: what is written.
        kind: of its matrices.
        stored: tensors by Hugging Face's names whose kinds and bytes are given.
        sentencepiece: tokens, kinds and scores of a vocabulary in place of the tiny tokenizer's.
        metadata: by the names of GGUFWriter's methods.
    """
    config = model.config
    family = next(each for each in FAMILIES if each.name == config.model_type)
    architecture = family.gguf_architecture or "llama"
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (_said(model) | metadata).items():
        if name == "rope_factors":
            writer.add_tensor("rope_freqs.weight", value)
        else:
            getattr(writer, f"add_{name}")(*(value if isinstance(value, tuple) else (value,)))
    if sentencepiece is None:
        _add_vocabulary(writer)
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(sentencepiece["tokens"])
        writer.add_token_types(sentencepiece["token_type"])
        writer.add_token_scores(sentencepiece["scores"])
    for name, tensor in _stored(model, architecture):
        if name in stored:
            writer.add_tensor(gguf_name(name, family), stored[name][1], raw_dtype=stored[name][0])
        else:
            _add_tensor(writer, gguf_name(name, family), tensor.numpy(), kind)
    scaling = getattr(config, "rope_scaling", None) or {}
    for name in ("long", "short"):
        if f"{name}_factor" in scaling:
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(scaling[f"{name}_factor"], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _said(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    said: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "key_length": head_dim,
        "value_length": head_dim,
        "rope_dimension_count": int(head_dim * getattr(config, "partial_rotary_factor", 1.0)),
        "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_freq_base": config.rope_theta,
    }
    said |= {method: value for key, method in SAID.items() if (value := getattr(config, key, None))}
    types = getattr(config, "layer_types", None) or []
    if config.model_type.startswith("gemma") or getattr(config, "sliding_window", None):
        said["sliding_window"] = config.sliding_window
    if "sliding_attention" in types:
        said["sliding_window_pattern"] = [each == "sliding_attention" for each in types]
    return said | _said_of_rope(config)


def _said_of_rope(config: Any) -> dict[str, Any]:
    scaling = getattr(config, "rope_scaling", None) or {}
    outside = getattr(config, "original_max_position_embeddings", None)
    original: Any = scaling.get("original_max_position_embeddings", outside)
    match scaling.get("rope_type", scaling.get("type")):
        case "linear":
            return {
                "rope_scaling_type": gguf.RopeScalingType.LINEAR,
                "rope_scaling_factor": scaling["factor"],
            }
        case "yarn":
            return {
                "rope_scaling_type": gguf.RopeScalingType.YARN,
                "rope_scaling_factor": scaling["factor"],
                "rope_scaling_orig_ctx_len": original,
            }
        case "longrope":
            ratio = config.max_position_embeddings / original
            grown = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
            return {"rope_scaling_orig_ctx_len": original, "rope_scaling_attn_factors": grown}
    return {}


def _stored(model: PreTrainedModel, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors in Hugging Face's names, with the values that llama.cpp's converter gives them."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, count in heads.items():
            if architecture in INTERLEAVED and f".{part}." in name:
                tensor = interleave(tensor, count)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        yield name, tensor


def gguf_name(name: str, family: Family) -> str:
    """GGUF's name of a Hugging Face tensor."""
    for theirs, ours in OUTER_NAMES.items():
        if name == ours:
            return theirs
    _, _, block, rest = name.split(".", 3)
    stem, _, leaf = rest.rpartition(".")
    theirs = next(theirs for theirs, ours in layer_names(family).items() if ours == stem)
    return f"blk.{block}.{theirs}.{leaf}"


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    vocab = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    special = [
        gguf.TokenType.CONTROL if token.startswith("<|") else gguf.TokenType.NORMAL for token, _ in vocab
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types(special)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(96)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: gguf.GGMLQuantizationType
) -> None:
    """Norms and biases stay float32, as in llama.cpp's files."""
    if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
