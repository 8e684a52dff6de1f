"""The original checkpoint as a Hugging Face folder: the one source that every peer's converter reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.huggingface import INDEX
from kvfold.export.model.families import FAMILIES
from kvfold.export.model.family import SAME_KEYS
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.rope_config import LongRope
from kvfold.pipeline.bench.models.gguf_from_huggingface import ORIGINAL
from kvfold.plugins.contract.errors import UnsupportedModelError

# Families whose checkpoints are in normal form as Hugging Face has them.
PLAIN = ("llama", "mistral", "qwen2", "qwen3")


def write_huggingface_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write config, weights and tokenizer of a checkpoint into an existing folder, and link its GGUF file.

    Weights are float32, unless the family has a form of its own there, or layers that differ: then the files
    are those that the checkpoint was read from.

    Raises:
        UnsupportedModelError: such a checkpoint came from a GGUF file.
    """
    if not _is_plain(checkpoint.config):
        _copy_files(checkpoint, folder)
        return
    weights = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = huggingface_config(checkpoint.config) | _special_ids(checkpoint)
    _write_json(folder / "config.json", config)
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer.json, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(checkpoint))
    source = checkpoint.files[0]
    if source.suffix == ".gguf":
        (folder / ORIGINAL).symlink_to(source.resolve())


def _is_plain(config: ModelConfig) -> bool:
    scaling = config.ropes[0].scaling
    alike = len(config.ropes) == 1 and not any(config.sliding_windows)
    return config.family in PLAIN and alike and not isinstance(scaling, LongRope)


def _copy_files(checkpoint: Checkpoint, folder: Path) -> None:
    source = checkpoint.files[0].parent
    if not (source / "config.json").is_file():
        raise UnsupportedModelError(
            f"{checkpoint.source}: peers cannot be given a model of family {checkpoint.config.family} from a "
            "GGUF file; name its folder in Hugging Face's layout"
        )
    index = source / INDEX
    for path in (*checkpoint.files, *([index] if index.is_file() else [])):
        shutil.copyfile(path, folder / path.name)


def huggingface_config(config: ModelConfig) -> dict[str, object]:
    """`config.json` of a plain family as transformers 4 and 5 read it."""
    family = next(family for family in FAMILIES if family.name == config.family)
    values = config.model_dump(
        include=set(SAME_KEYS) | {"num_key_value_heads", "head_dim", "tie_word_embeddings"}
    )
    (rope,) = config.ropes
    scaling = None if rope.scaling is None else rope.scaling.model_dump()
    return values | {
        "model_type": family.name,
        "architectures": [family.architecture],
        "hidden_act": "silu",
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "sliding_window": None,
        "torch_dtype": "float32",
    }


def _special_ids(checkpoint: Checkpoint) -> dict[str, object]:
    tokenizer = checkpoint.tokenizer.config
    ends = tokenizer.eos_token_ids
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends[0] if ends else None}


def _tokenizer_config(checkpoint: Checkpoint) -> dict[str, object]:
    tokenizer = checkpoint.tokenizer.config
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": checkpoint.config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "chat_template": tokenizer.chat_template,
        **tokenizer.special_tokens,
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
