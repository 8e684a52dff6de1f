"""A random checkpoint in the shape of one that people deploy, to measure what a build of it costs.

It is written a tensor at a time, so that a model larger than memory can be made:

    python -m kvfold.pipeline.bench.models.random_checkpoint qwen2.5-1.5b FOLDER [LAYERS]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from kvfold.export.checkpoint.huggingface import INDEX
from kvfold.export.checkpoint.weights import Shape, expected_shapes
from kvfold.export.model.families import config_from_huggingface
from kvfold.export.weights.tensor_file import write_tensors

# As their publishers' config.json has it.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5-1.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 1_536,
        "intermediate_size": 8_960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8_192,
        },
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
}
SHARDS = 4
DEVIATION = 0.02  # of the weights, as models are initialised


def write_random_checkpoint(folder: Path, config: Mapping[str, Any], shards: int = SHARDS) -> None:
    """Write config, bfloat16 weights in shards, and a tokenizer of bytes into `folder`, which is made."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    shapes = expected_shapes(config_from_huggingface(config))
    generator = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    parts = list(_split(shapes, shards))
    for number, names in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        index |= dict.fromkeys(names, file)
        own = {name: (torch.bfloat16, shapes[name]) for name in names}
        write_tensors(folder / file, own, (random_tensor(name, shapes[name], generator) for name in names))
    size = sum(2 * prod(shape) for shape in shapes.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": index}))


def random_tensor(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    """Weights around 0, norms around 1."""
    values = torch.empty(shape, dtype=torch.bfloat16).normal_(0, DEVIATION, generator=generator)
    return values + 1 if name.endswith("norm.weight") else values


def byte_tokenizer() -> Tokenizer:
    """A token a byte, and one that ends a text; the rest of a vocabulary stands for nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|im_end|>"])
    return tokenizer


def _split(shapes: Mapping[str, Shape], shards: int) -> Iterator[list[str]]:
    """Names in order, in at most so many shards of about the same size."""
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    most, taken, names = sum(sizes.values()) / shards, 0, list[str]()
    for name, size in sizes.items():
        if names and taken + size > most and shards > 1:
            yield names
            taken, names, shards = 0, [], shards - 1
        names.append(name)
        taken += size
    yield names


if __name__ == "__main__":
    shape, target, *layers = sys.argv[1:]
    changes = {"num_hidden_layers": int(layers[0])} if layers else {}
    write_random_checkpoint(Path(target), {**SHAPES[shape], **changes})
