"""Read a GGUF file: config, dequantised weights under Hugging Face's names, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from torch import Tensor

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.gguf_config import (
    CONFIG_TENSORS,
    config_of_header,
    form_of_header,
    gguf_family,
)
from kvfold.export.checkpoint.gguf_header import GgufHeader, read_gguf_header
from kvfold.export.checkpoint.gguf_tensors import deinterleave, huggingface_name, read_values, stored_rows
from kvfold.export.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from kvfold.export.checkpoint.normal_form import parts_of, read_normal
from kvfold.export.checkpoint.unfit_folders import refuse_lfs_pointers
from kvfold.export.checkpoint.weights import LazyWeights, check_shapes
from kvfold.export.model.model_config import ModelConfig


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
        weights=_open_weights(header, config),
        tokenizer=tokenizer_from_gguf(path, header.metadata, config.vocab_size, override),
        files=(path,) if override is None else (path, override),
    )


def _open_weights(header: GgufHeader, config: ModelConfig) -> LazyWeights:
    content = np.memmap(header.path, np.uint8, "r")
    family, form = gguf_family(header.metadata), form_of_header(header, config)
    readers: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in header.tensors.values():
        if tensor.name in CONFIG_TENSORS:
            continue
        stored = stored_rows(header.path, content, tensor)
        read = partial(_read_rows, stored, GGMLQuantizationType(tensor.kind))
        named = huggingface_name(tensor.name, family)
        for name, rows in parts_of(named, tensor.shape, config, form).items():
            heads = _interleaved_heads(name, config) if family.gguf_interleaved else 0
            shapes[name] = (len(range(*rows.indices(tensor.shape[0]))), *tensor.shape[1:])
            readers[name] = partial(read_normal, partial(read, rows, heads), name, config, form)
    check_shapes(str(header.path), shapes, config)
    return LazyWeights(str(header.path), readers, [header.path])


def _interleaved_heads(name: str, config: ModelConfig) -> int:
    """Heads whose rows llama.cpp interleaves; 0 for tensors that do not turn."""
    heads = {".q_proj.": config.num_attention_heads, ".k_proj.": config.num_key_value_heads}
    return next((count for part, count in heads.items() if part in name), 0)


def _read_rows(stored: np.ndarray, kind: GGMLQuantizationType, rows: slice, interleaved_heads: int) -> Tensor:
    part = stored[rows] if stored.ndim > 1 else stored
    values = read_values(part, kind)
    return deinterleave(values, interleaved_heads) if interleaved_heads else values
