"""Read a checkpoint as Hugging Face lays it out: a folder, or a hub id that is fetched into one."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.huggingface_tokenizer import tokenizer_from_huggingface
from kvfold.export.checkpoint.normal_form import fused_names, parts_of, read_normal
from kvfold.export.checkpoint.unfit_folders import (
    ADAPTER_CONFIG,
    missing_weights,
    refuse_lfs_pointers,
    refuse_quantised,
    refuse_unfit_folder,
)
from kvfold.export.checkpoint.weights import (
    HEAD,
    LazyWeights,
    Shape,
    canonical_name,
    check_shapes,
    expected_shapes,
)
from kvfold.export.model.families import config_from_huggingface, form_from_huggingface
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.stored_form import StoredForm
from kvfold.export.weights.tensor_file import TensorFile
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError

CONFIG_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
TOKENIZER_FILES = ("tokenizer.json", "chat_template.jinja")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
HARMLESS = "rotary_emb.inv_freq"  # recomputed from the config; old checkpoints stored it


class TensorSlice(Protocol):
    """A tensor's header; safetensors has no types of its own."""

    def get_dtype(self) -> str:
        """Type in safetensors' spelling, for example BF16."""
        ...

    def get_shape(self) -> list[int]:
        """Sizes of all axes."""
        ...

    def __getitem__(self, rows: slice) -> Tensor:
        """Some of its rows, read from the file."""
        ...


class SafetensorsFile(Protocol):
    """An open safetensors file; safetensors has no types of its own."""

    def keys(self) -> list[str]:
        """Names of its tensors."""
        ...

    def get_slice(self, name: str) -> TensorSlice:
        """Header of one tensor."""
        ...


def fetch_from_hub(repository: str) -> Path:
    """The local folder of a hub id; fetches only the files that are read, through the hub's cache.

    Raises:
        CheckpointError: the hub cannot be reached, or has no such repository.
    """
    wanted = [*CONFIG_FILES, *TOKENIZER_FILES, ADAPTER_CONFIG, "model*.safetensors", INDEX]
    try:
        return Path(snapshot_download(repository, allow_patterns=wanted))
    except (OSError, HFValidationError) as error:
        raise CheckpointError(
            f"{repository} is no local file or folder, and the Hugging Face hub did not give it: {error}. "
            "Without network, fetch it elsewhere and name the local folder instead of the id"
        ) from error


def checkpoint_from_folder(folder: Path, source: str) -> Checkpoint:
    """Read config and tokenizer, and open the weights of a folder; `source` is what the user named.

    Raises:
        CheckpointError: a file or tensor is missing, truncated, corrupted or unexpected; it is named.
        UnsupportedModelError: the model is not one that kvfold can fold.
    """
    refuse_unfit_folder(folder)
    read = [path for name in (*CONFIG_FILES, *TOKENIZER_FILES) if (path := folder / name).is_file()]
    refuse_lfs_pointers(read)
    declared = {name: _read_json(folder / name) for name in CONFIG_FILES}
    config = config_from_huggingface(declared["config.json"])
    shards = _weight_files(folder)
    refuse_lfs_pointers(shards)
    return Checkpoint(
        source=source,
        config=config,
        weights=_open_weights(folder, shards, config, form_from_huggingface(declared["config.json"])),
        tokenizer=tokenizer_from_huggingface(folder, declared, config.vocab_size),
        files=(*read, *shards),
    )


def _read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; empty where the file does not exist."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__} where an object belongs; fetch it again")
    return value


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or every shard that an index names.

    An index beside the one file is not read, as transformers does not: saving a model in one file over its
    shards leaves theirs.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    refuse_lfs_pointers([folder / INDEX] if (folder / INDEX).is_file() else [])
    index = _read_json(folder / INDEX)
    shards = index.get("weight_map") if index else {"": SINGLE}
    if not isinstance(shards, dict) or not shards or not all(isinstance(n, str) for n in shards.values()):
        raise CheckpointError(
            f"{folder / INDEX} has no weight_map from tensors to files but {shards!r:.60}; fetch it again"
        )
    names = sorted(set(shards.values()))
    for name in names:
        if not name or Path(name).name != name or "\0" in name:
            raise CheckpointError(f"{folder / INDEX} names {name!r:.80}, which is outside of its folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise missing_weights(folder, missing, len(names))
    return [folder / name for name in names]


def _open_weights(folder: Path, shards: list[Path], config: ModelConfig, form: StoredForm) -> LazyWeights:
    readers: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, Shape] = {}
    expected = {*expected_shapes(config), HEAD, *fused_names(config, form)}
    for path in shards:
        try:
            file = cast(SafetensorsFile, safe_open(path, framework="pt"))
            named = list(file.keys())
            slices = {name: file.get_slice(name) for name in named if not name.endswith(HARMLESS)}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is truncated or corrupted: {error}; fetch it again") from error
        refuse_quantised(str(path), slices)
        tensors = TensorFile(path, say_checkpoint)
        for stored, part in slices.items():
            if part.get_dtype() not in FLOATS:
                raise UnsupportedModelError(
                    f"{path}: tensor {stored} has type {part.get_dtype()}; supported are {', '.join(FLOATS)}"
                )
            shape = tuple(part.get_shape())
            for name, rows in parts_of(canonical_name(stored, expected), shape, config, form).items():
                if name in readers:
                    raise CheckpointError(
                        f"{path}: tensor {stored} is there twice, as {name}; remove one of them"
                    )
                shapes[name] = (len(range(*rows.indices(shape[0]))), *shape[1:]) if shape else shape
                readers[name] = partial(tensors.in_float32, stored, rows)
    if config.tie_word_embeddings and HEAD in shapes:
        _drop_tied_head(folder, readers, shapes)
    check_shapes(str(folder), shapes, config)
    return LazyWeights(
        str(folder),
        {name: partial(read_normal, read, name, config, form) for name, read in readers.items()},
        [folder / "config.json", *shards],
    )


def say_checkpoint(said: str) -> CheckpointError:
    """What is wrong with a file of a checkpoint."""
    return CheckpointError(f"{said}; fetch it again")


def _drop_tied_head(folder: Path, readers: dict[str, Callable[[], Tensor]], shapes: dict[str, Shape]) -> None:
    """Some tied checkpoints store the head as well; a head of its own would contradict the config."""
    embedding = "model.embed_tokens.weight"
    if embedding not in readers or not torch.equal(readers[HEAD](), readers[embedding]()):
        raise CheckpointError(
            f"{folder}: config.json ties the embeddings, but {HEAD} differs from {embedding}; "
            "set tie_word_embeddings to false if the head was trained by itself"
        )
    del readers[HEAD], shapes[HEAD]
