"""A Hugging Face folder as a GGUF file with Q8_0 matrices, for llama.cpp.

For the bench in process it holds no tokenizer: token ids are handed over. A server wants one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# In the Hugging Face folder: the GGUF file that the checkpoint was read from.
ORIGINAL = "original.gguf"

# GGUF architecture, and whether llama.cpp rotates neighbouring channels there: Q and K rows are permuted.
ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}


def add_no_vocabulary(writer: Any) -> None:
    """For a model that is given token ids."""
    writer.add_tokenizer_model("no_vocab")


def write_gguf(source: Path, target: Path, add_vocabulary: Callable[[Any], None] = add_no_vocabulary) -> None:
    """Convert the folder `source` into the file `target`; `add_vocabulary` gets its GGUFWriter.

    Raises:
        ValueError: RoPE scaling, windows or a family that this writer does not know.
    """
    import gguf
    from safetensors.numpy import load_file

    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    _refuse(config)
    name, interleaved = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(target, name)
    _add_config(writer, config)
    add_vocabulary(writer)
    architecture = {known: kind for kind, known in gguf.MODEL_ARCH_NAMES.items()}[name]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for tensor_name, tensor in load_file(source / "model.safetensors").items():
        stored = names.get_name(tensor_name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise ValueError(f"GGUF has no name for tensor {tensor_name} of a {name} model")
        heads = _permuted_heads(tensor_name, config) if interleaved else 0
        data = permute_rows(tensor, heads) if heads else tensor
        if data.ndim == 1:
            writer.add_tensor(stored, data)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _refuse(config: dict[str, Any]) -> None:
    """What the file could not say; a folder that is a copy of the checkpoint's own may hold all of it."""
    if config["model_type"] not in ARCHITECTURES:
        raise ValueError(f"the GGUF writer knows {', '.join(ARCHITECTURES)}, not {config['model_type']}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"RoPE scaling {kind}: the GGUF writer knows plain RoPE only")
    if config.get("sliding_window") is not None:
        raise ValueError(
            f"windows of {config['sliding_window']} tokens: the GGUF writer knows full attention only"
        )


def _add_config(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _permuted_heads(tensor_name: str, config: dict[str, Any]) -> int:
    """Heads of a Q or K projection; 0 for every other tensor."""
    if ".q_proj." in tensor_name:
        return int(config["num_attention_heads"])
    if ".k_proj." in tensor_name:
        return int(config["num_key_value_heads"])
    return 0


def permute_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from halves (i, i + d/2) to neighbours (2i, 2i + 1), as llama.cpp's converter does."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)
