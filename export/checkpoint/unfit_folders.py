"""What people have where a checkpoint belongs: it is named, with how to come by a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError

ADAPTER_CONFIG = "adapter_config.json"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
OTHER_WEIGHTS = ("pytorch_model*.bin", "*.pth", "*.pt", "consolidated*.safetensors")
# Endings of tensors' names by which quantised weights are known, where the config does not say it.
QUANTISED_TENSORS = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight.absmax": "bitsandbytes",
    ".weight_format": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale_inv": "FP8",
    ".scales": "MLX",
}


def refuse_lfs_pointers(paths: Iterable[Path]) -> None:
    """Raise CheckpointError where a file is what git keeps in place of it."""
    for path in paths:
        try:
            with path.open("rb") as file:
                start = file.read(len(LFS_POINTER))
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}); check its permissions"
            ) from error
        if start == LFS_POINTER:
            raise CheckpointError(
                f"{path} is a git-lfs pointer, not the file itself: run `git lfs install` and `git lfs pull` "
                f"in {path.parent}"
            )


def refuse_unfit_folder(folder: Path) -> None:
    """Raise CheckpointError where a folder holds no model of its own in Hugging Face's layout."""
    if (folder / ADAPTER_CONFIG).is_file():
        base = _base_of_adapter(folder / ADAPTER_CONFIG)
        raise CheckpointError(
            f"{folder} is a LoRA (PEFT) adapter of {base} ({ADAPTER_CONFIG}): merge it first, in Python "
            f"`PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {str(folder)!r})"
            ".merge_and_unload().save_pretrained('merged')`; save the tokenizer there too, and name that "
            f"folder. If the folder's weights are merged already, remove {ADAPTER_CONFIG}"
        )
    if (folder / "config.json").is_file():
        return
    if files := _named(folder.glob("*.gguf")):
        raise CheckpointError(f"{folder} has no config.json but GGUF files; name one of them: {files}")
    below = [*folder.glob("*/config.json"), *folder.glob("*/*/config.json")]
    if inner := _named(path.parent for path in below):
        raise CheckpointError(f"{folder} has no config.json, a folder in it has one; name that: {inner}")
    raise CheckpointError(
        f"{folder} has no config.json; name a folder with a model in Hugging Face's layout, or a GGUF file"
    )


def missing_weights(folder: Path, missing: list[str], count: int) -> CheckpointError:
    """What to say of files of weights that are not there: `missing` of `count`."""
    lacking = f"{folder / missing[0]} is missing"
    if count > 1:
        lacking += f" ({len(missing)} of {count} shards are)"
    others = [path for pattern in OTHER_WEIGHTS for path in folder.glob(pattern)]
    if count == 1 and others:
        return CheckpointError(
            f"{lacking}; there is {_named(others)}, and weights are read from safetensors files in Hugging "
            "Face's layout only. Load them with transformers, `AutoModelForCausalLM.from_pretrained`, and "
            "save them with `save_pretrained`, which writes such files"
        )
    if count == 1 and (files := _named(folder.glob("*.gguf"))):
        return CheckpointError(f"{lacking}; there are GGUF files, name one of them: {files}")
    return CheckpointError(f"{lacking}; fetch it again (weights are read from safetensors files only)")


def refuse_quantised(source: str, names: Iterable[str]) -> None:
    """Raise UnsupportedModelError where tensors are those of a quantised model; the method is named."""
    for name in names:
        for ending, method in QUANTISED_TENSORS.items():
            if name.endswith(ending):
                raise UnsupportedModelError(
                    f"{source}: tensor {name} is of weights quantised by {method}; start from the float "
                    "checkpoint"
                )


def _base_of_adapter(path: Path) -> str:
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        named = None
    return str(named or "its base model")


def _named(paths: Iterable[Path]) -> str:
    """The first three, in order."""
    listed = sorted(map(str, paths))
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
