"""Tensors of a GGUF file: their names as Hugging Face's, and their values, a block of rows at a time."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from gguf.quants import quant_shape_to_byte_shape
from torch import Tensor

from kvfold.export.checkpoint.gguf_header import GgufTensor
from kvfold.export.model.family import Family
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError

# GGUF tensor -> Hugging Face tensor; blk.<i>.<name> -> model.layers.<i>.<name>.
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FUSED_NAMES = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
# By where a family's blocks have their norms.
NORM_NAMES = {
    "pre": {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    "post": {
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "both": {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
# Values that are dequantised at a time: the package takes several times the space of what it gives.
BLOCK = 2**22


def layer_names(family: Family) -> dict[str, str]:
    """Names of a layer's tensors, GGUF to Hugging Face, without `.weight`."""
    fused = FUSED_NAMES if family.fused else {}
    return {**LAYER_NAMES, **NORM_NAMES[family.norm_placement], **fused}


def huggingface_name(name: str, family: Family) -> str:
    """Hugging Face's name of a GGUF tensor; an unknown one keeps its own and is then reported by it."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    stem, _, kind = rest.rpartition(".")
    names = layer_names(family)
    if name.startswith("blk.") and stem in names:
        return f"model.layers.{block}.{names[stem]}.{kind}"
    return name


def stored_rows(path: Path, content: np.ndarray, tensor: GgufTensor) -> np.ndarray:
    """The bytes of a tensor's rows, which stay in the file until they are read.

    Raises:
        CheckpointError: the file ends before the tensor does, or its rows are no whole blocks.
        UnsupportedModelError: nobody dequantises its type.
    """
    if tensor.kind not in set(GGMLQuantizationType):
        raise UnsupportedModelError(
            f"{path}: tensor {tensor.name} has type number {tensor.kind}, which this gguf package does not "
            "know; upgrade it, or convert the file to Q8_0 or F16 with llama-quantize"
        )
    kind = GGMLQuantizationType(tensor.kind)
    if not _is_readable(kind):
        raise UnsupportedModelError(
            f"{path}: tensor {tensor.name} has quantisation {kind.name}, which the gguf package cannot "
            "dequantise; convert the file to Q8_0 or F16 with llama-quantize"
        )
    try:
        shape = quant_shape_to_byte_shape(tensor.shape, kind)
        return content[tensor.offset : tensor.offset + math.prod(shape)].reshape(shape)
    except (ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path} is not a GGUF file, or it is truncated or corrupted: tensor {tensor.name}: {error}"
        ) from error


@cache
def _is_readable(kind: GGMLQuantizationType) -> bool:
    """Whether the package gives values of a type: tried on one block."""
    try:
        dequantize(np.zeros(quant_shape_to_byte_shape((256,), kind), np.uint8), kind)
    except (NotImplementedError, ValueError):
        return False
    return True


def read_values(stored: np.ndarray, kind: GGMLQuantizationType) -> Tensor:
    """Rows, bytes as in the file, as float32."""
    rows = stored.reshape(-1, stored.shape[-1])
    width = dequantize(np.array(rows[:1]), kind).shape[-1]
    values = torch.empty((len(rows), width), dtype=torch.float32)
    step = max(1, BLOCK // width)
    for start in range(0, len(rows), step):
        values[start : start + step] = torch.from_numpy(
            np.asarray(dequantize(np.array(rows[start : start + step]), kind), np.float32)
        )
    return values.reshape(*stored.shape[:-1], width)


def deinterleave(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's row order of Q and K, [heads * head_dim, hidden], or of a bias.

    Its converter moves rows (i, i + head_dim / 2) of a head to (2 i, 2 i + 1), so that RoPE pairs are
    neighbours; Hugging Face pairs the two halves.
    """
    pairs = weight.reshape(heads, len(weight) // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)
