"""Read a GGUF file: metadata, dequantised weights under Hugging Face's names, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor, dequantize
from torch import Tensor

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.gguf_config import GgufTensorFacts, config_from_gguf, gguf_family
from kvfold.export.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from kvfold.export.checkpoint.unfit_folders import refuse_lfs_pointers
from kvfold.export.checkpoint.weights import LazyWeights, check_shapes
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError

# GGUF tensor -> Hugging Face tensor; blk.<i>.<name> -> model.layers.<i>.<name>.
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# A tensor that is there where the family's config asks for biases by this key.
BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
ROPE_FACTORS = "rope_freqs.weight"  # llama3 RoPE; part of the config here


def checkpoint_from_gguf(path: Path) -> Checkpoint:
    """Read config and tokenizer, and open the weights of a GGUF file.

    A tokenizer.json in the same folder takes precedence over the file's own vocabulary.

    Raises:
        CheckpointError: the file is truncated or corrupted, or a tensor is missing or unexpected.
        UnsupportedModelError: its architecture, RoPE, vocabulary or quantisation is not supported.
    """
    refuse_lfs_pointers([path])
    metadata, tensors = _open(path)
    _refuse_parts(path, metadata)
    config = _read_config(path, metadata, tensors)
    sibling = path.parent / "tokenizer.json"
    override = sibling if sibling.is_file() else None
    refuse_lfs_pointers([override] if override else [])
    return Checkpoint(
        source=str(path),
        config=config,
        weights=_open_weights(path, tensors, config, interleaved=gguf_family(metadata).gguf_interleaved),
        tokenizer=tokenizer_from_gguf(path, metadata, config.vocab_size, override),
        files=(path,) if override is None else (path, override),
    )


def _open(path: Path) -> tuple[dict[str, Any], dict[str, ReaderTensor]]:
    """Metadata and tensors by name; the tensors' data stay in the file."""
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        return metadata, {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OSError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is not a GGUF file, or it is truncated or corrupted: {error}"
        ) from error


def _refuse_parts(path: Path, metadata: dict[str, Any]) -> None:
    """Files that are a part of a model, or belong to one."""
    count = metadata.get("split.count", 1)
    if count != 1:
        raise UnsupportedModelError(
            f"{path} is one of {count} parts of a model; join them with `llama-gguf-split --merge` and name "
            "the whole"
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(
            f"{path} holds no model but general.type = {kind!r:.40}; name the model's own file (merge a LoRA "
            "adapter into it with `llama-export-lora`)"
        )


def _read_config(path: Path, metadata: dict[str, Any], tensors: dict[str, ReaderTensor]) -> ModelConfig:
    gguf_family(metadata)  # an unknown architecture is named before its tensors are missed
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{path}: missing tensor token_embd.weight; is this a vocabulary-only file?")
    factors = tensors.get(ROPE_FACTORS)
    facts = GgufTensorFacts(
        vocab_size=int(embedding.shape[1]),
        tie_word_embeddings="output.weight" not in tensors,
        bias_keys=tuple(key for key, name in BIASES.items() if name in tensors),
        rope_factors=None if factors is None else tuple(float(factor) for factor in factors.data),
    )
    return config_from_gguf(metadata, facts)


def _open_weights(
    path: Path, tensors: dict[str, ReaderTensor], config: ModelConfig, *, interleaved: bool
) -> LazyWeights:
    readers: dict[str, Callable[[], Tensor]] = {}
    shapes = {}
    for tensor in tensors.values():
        if tensor.name == ROPE_FACTORS:
            continue
        name = huggingface_name(tensor.name)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        permuted = [count for part, count in heads.items() if interleaved and f".{part}." in name]
        shapes[name] = tuple(int(size) for size in reversed(tensor.shape))
        readers[name] = partial(_read_tensor, path, tensor, permuted[0] if permuted else None)
    check_shapes(str(path), shapes, config)
    return LazyWeights(str(path), readers)


def huggingface_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; an unknown one keeps its own and is then reported by it."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    stem, _, kind = rest.rpartition(".")
    if name.startswith("blk.") and stem in LAYER_NAMES:
        return f"model.layers.{block}.{LAYER_NAMES[stem]}.{kind}"
    return name


def _read_tensor(path: Path, tensor: ReaderTensor, interleaved_heads: int | None) -> Tensor:
    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{path}: tensor {tensor.name} has quantisation {tensor.tensor_type.name}, which the gguf "
            "package cannot dequantise; convert the file to Q8_0 or F16 with llama-quantize"
        ) from error
    weight = torch.from_numpy(np.array(values, dtype=np.float32, copy=values.base is not None))
    return weight if interleaved_heads is None else deinterleave(weight, interleaved_heads)


def deinterleave(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's row order of Q and K, [heads * head_dim, hidden], or of a bias.

    Its converter moves rows (i, i + head_dim / 2) of a head to (2 i, 2 i + 1), so that RoPE pairs are
    neighbours; Hugging Face pairs the two halves.
    """
    pairs = weight.reshape(heads, len(weight) // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)
