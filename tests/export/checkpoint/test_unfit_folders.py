"""What people have for a checkpoint: loaded where transformers loads it, else named, with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file

from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.export.tiny_gguf import write_gguf

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", random_model("llama"))


def rename_tensors(folder: Path, rename: Callable[[str], str], drop: str = "") -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({rename(name): tensor for name, tensor in tensors.items() if name != drop}, folder / WEIGHTS)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("model."),
        lambda name: f"language_model.{name}",
        lambda name: f"language_model.{name.removeprefix('model.')}",
        lambda name: name.replace("model.", "model.language_model.", 1),
        lambda name: f"_orig_mod.{name}",
    ],
)
def test_weights_are_found_by_any_of_their_names(folder: Path, rename: Callable[[str], str]) -> None:
    before = {name: tensor.clone() for name, tensor in load_checkpoint(folder).weights.items()}
    rename_tensors(folder, rename)
    after = load_checkpoint(folder).weights
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_backbone_without_head_is_read_where_its_embeddings_are_tied(tmp_path: Path) -> None:
    model = random_model("llama", tie_word_embeddings=True)
    write_folder(tmp_path, model)
    model.model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaModel"]
    assert "embed_tokens.weight" in load_file(tmp_path / WEIGHTS)
    weights = load_checkpoint(tmp_path).weights
    assert torch.equal(weights["model.norm.weight"], model.model.norm.weight)


def test_a_tensor_under_two_names_is_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"norm.weight": torch.ones(32)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"norm\.weight is there twice, as model\.norm\.weight"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS, INDEX])
def test_a_git_lfs_pointer_is_named(folder: Path, name: str) -> None:
    if name == INDEX:  # which is read where there is no one file
        (folder / WEIGHTS).unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a git-lfs pointer.*`git lfs pull` in {folder}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.gguf", "tokenizer.json"])
def test_a_git_lfs_pointer_of_a_gguf_is_named(tmp_path: Path, name: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), GGMLQuantizationType.F32)
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a git-lfs pointer"):
        load_checkpoint(path)


@pytest.mark.parametrize("has_model", [True, False])
def test_an_adapter_is_to_be_merged(folder: Path, has_model: bool) -> None:
    """Beside a model too, as transformers would put it on top of that."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    if not has_model:
        (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"LoRA \(PEFT\) adapter of owner/base.*merge_and_unload\(\)"):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_an_adapter_that_names_no_base_is_one_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter of its base model"):
        load_checkpoint(tmp_path)


def test_no_head_and_no_tie(folder: Path) -> None:
    rename_tensors(folder, str, drop="lm_head.weight")
    with pytest.raises(CheckpointError, match=r'no lm_head\.weight.*lacks "tie_word_embeddings": true'):
        load_checkpoint(folder)
    edit_config(folder, tie_word_embeddings=True)
    load_checkpoint(folder)


def test_missing_tensors_are_named_beside_those_that_are_there(folder: Path) -> None:
    rename_tensors(folder, lambda name: f"transformer.{name}")
    with pytest.raises(
        CheckpointError, match=r"missing tensors lm_head.*it holds tensors transformer\.lm_head"
    ):
        load_checkpoint(folder)


def test_a_gguf_in_a_folder_is_to_be_named_itself(folder: Path) -> None:
    path = write_gguf(folder / "model-Q8_0.gguf", random_model("llama"), GGMLQuantizationType.F32)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} is missing; there are GGUF files, .*{path}"):
        load_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=rf"no config\.json but GGUF files; name one of them: {path}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("inner", ["checkpoint-500", "snapshots/0123abc"])
def test_the_folder_above_a_model_names_the_model_s(folder: Path, tmp_path: Path, inner: str) -> None:
    shutil.copytree(folder, tmp_path / "outer" / inner)
    with pytest.raises(CheckpointError, match=rf"a folder in it has one; name that: .*{inner}"):
        load_checkpoint(tmp_path / "outer")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt"]
)
def test_other_weights_are_to_be_saved_again(folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder / name)
    with pytest.raises(CheckpointError, match=rf"there is .*{name}, .*`save_pretrained`"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
def test_a_file_of_weights_is_no_model(folder: Path, name: str) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=rf"say nothing of the model; name its folder, {folder}"):
        load_checkpoint(folder / name)


def test_missing_shards_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, random_model("llama"), max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    for shard in shards[1:3]:
        shard.unlink()
    with pytest.raises(
        CheckpointError, match=rf"{shards[1].name} is missing \(2 of {len(shards)} shards are\)"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, 3, {"x": 3}, {"x": None}, {"x": "a\0b"}, {"x": ""}])
def test_an_index_that_is_none_is_named(folder: Path, weight_map: object) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("quantization_config", {"bits": 4, "quant_method": "awq"}, r"quant_method 'awq'.*float checkpoint"),
        ("quantization_config", {"pad": "x" * 99, "quant_method": "gptq"}, "quant_method 'gptq'"),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'"),
        ("quantization_config", {"quant_method": "compressed-tensors"}, "'compressed-tensors'"),
        ("compression_config", {"format": "pack-quantized"}, "compression_config"),
        ("quantization", {"group_size": 64, "bits": 4}, "quantization = .*'bits': 4.*quantised already"),
    ],
)
def test_quantised_weights_are_refused_by_method(folder: Path, key: str, value: object, named: str) -> None:
    edit_config(folder, **{key: value})
    with pytest.raises(UnsupportedModelError, match=named):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("ending", "method"),
    [
        ("qweight", "GPTQ or AWQ"),
        ("weight_packed", "compressed-tensors"),
        ("weight.absmax", "bitsandbytes"),
        ("SCB", "bitsandbytes"),
        ("weight_scale_inv", "FP8"),
        ("scales", "MLX"),
    ],
)
def test_quantised_tensors_are_refused_by_method(folder: Path, ending: str, method: str) -> None:
    """Where the config does not say it."""
    name = f"model.layers.0.mlp.up_proj.{ending}"
    save_file(load_file(folder / WEIGHTS) | {name: torch.zeros(4, dtype=torch.int32)}, folder / WEIGHTS)
    with pytest.raises(UnsupportedModelError, match=rf"{name} is of weights quantised by {method}"):
        load_checkpoint(folder)


def test_a_gguf_that_is_no_model_is_named(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.F32
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), kind, type="adapter")
    with pytest.raises(UnsupportedModelError, match=r"general\.type = 'adapter'.*llama-export-lora"):
        load_checkpoint(path)


def test_a_part_of_a_gguf_is_named(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.F32
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), kind, uint16=("split.count", 3))
    with pytest.raises(UnsupportedModelError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        load_checkpoint(path)
