"""Read a GGUF file: config, dequantised weights under Hugging Face's names, and its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from gguf.quants import quant_shape_to_byte_shape
from torch import Tensor

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.gguf_config import ROPE_FACTORS, config_of_header, gguf_family
from kvfold.export.checkpoint.gguf_header import GgufHeader, GgufTensor, read_gguf_header
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


def checkpoint_from_gguf(path: Path) -> Checkpoint:
    """Read config and tokenizer, and open the weights of a GGUF file.

    A tokenizer.json in the same folder takes precedence over the file's own vocabulary.

    Raises:
        CheckpointError: the file is truncated or corrupted, or a tensor is missing or unexpected.
        UnsupportedModelError: its architecture, RoPE, vocabulary or quantisation is not supported.
    """
    refuse_lfs_pointers([path])
    header = read_gguf_header(path)
    config = config_of_header(header)
    sibling = path.parent / "tokenizer.json"
    override = sibling if sibling.is_file() else None
    refuse_lfs_pointers([override] if override else [])
    return Checkpoint(
        source=str(path),
        config=config,
        weights=_open_weights(header, config, interleaved=gguf_family(header.metadata).gguf_interleaved),
        tokenizer=tokenizer_from_gguf(path, header.metadata, config.vocab_size, override),
        files=(path,) if override is None else (path, override),
    )


def _open_weights(header: GgufHeader, config: ModelConfig, *, interleaved: bool) -> LazyWeights:
    content = np.memmap(header.path, np.uint8, "r")
    readers: dict[str, Callable[[], Tensor]] = {}
    shapes = {}
    for tensor in header.tensors.values():
        if tensor.name == ROPE_FACTORS:
            continue
        name = huggingface_name(tensor.name)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        permuted = [count for part, count in heads.items() if interleaved and f".{part}." in name]
        shapes[name] = tensor.shape
        stored = _rows(header, content, tensor)
        readers[name] = partial(_read_tensor, header.path, tensor, stored, permuted[0] if permuted else None)
    check_shapes(str(header.path), shapes, config)
    return LazyWeights(str(header.path), readers)


def _rows(header: GgufHeader, content: np.ndarray, tensor: GgufTensor) -> np.ndarray:
    """The bytes of a tensor's rows, which stay in the file until they are read."""
    try:
        kind = GGMLQuantizationType(tensor.kind)
        shape = quant_shape_to_byte_shape(tensor.shape, kind)
        return content[tensor.offset : tensor.offset + math.prod(shape)].reshape(shape)
    except (ValueError, IndexError) as error:
        raise CheckpointError(
            f"{header.path} is not a GGUF file, or it is truncated or corrupted: "
            f"tensor {tensor.name}: {error}"
        ) from error


def huggingface_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; an unknown one keeps its own and is then reported by it."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    stem, _, kind = rest.rpartition(".")
    if name.startswith("blk.") and stem in LAYER_NAMES:
        return f"model.layers.{block}.{LAYER_NAMES[stem]}.{kind}"
    return name


def _read_tensor(path: Path, tensor: GgufTensor, stored: np.ndarray, interleaved_heads: int | None) -> Tensor:
    kind = GGMLQuantizationType(tensor.kind)
    try:
        values = dequantize(stored, kind)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{path}: tensor {tensor.name} has quantisation {kind.name}, which the gguf "
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
