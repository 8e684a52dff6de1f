"""Damaged and unsupported checkpoints are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from kvfold.export.checkpoint import huggingface
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.export.tiny_gguf import write_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, random_model("llama"))


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", random_model("llama"), GGMLQuantizationType.F32)


def truncate(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def edit_tensors(folder: Path, add: dict[str, torch.Tensor], drop: str | None = None) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path) | add
    save_file({name: tensor for name, tensor in tensors.items() if name != drop}, path)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.9])
def test_truncated_safetensors_is_named(folder: Path, keep: float) -> None:
    truncate(folder / "model.safetensors", keep)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or corrupted"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.9])
def test_truncated_gguf_is_named(gguf_path: Path, keep: float) -> None:
    truncate(gguf_path, keep)
    with pytest.raises(CheckpointError, match=r"model\.gguf is not a GGUF file, or it is truncated"):
        load_checkpoint(gguf_path)


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello " * 100)
    with pytest.raises(CheckpointError, match=r"notes\.txt is not a GGUF file"):
        load_checkpoint(path)


def test_gguf_with_broken_text_is_named(gguf_path: Path) -> None:
    gguf_path.write_bytes(gguf_path.read_bytes().replace(b"gpt-2", b"gpt\xff2", 1))
    with pytest.raises(
        CheckpointError, match=r"model\.gguf is not a GGUF file, or it is truncated or corrupted"
    ):
        load_checkpoint(gguf_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, random_model("llama"), max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        load_checkpoint(tmp_path)


def test_shard_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, random_model("llama"), max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../x.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"outside of its folder"):
        load_checkpoint(tmp_path)


def test_missing_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, {}, drop="model.norm.weight")
    with pytest.raises(CheckpointError, match=r"missing tensor model\.norm\.weight"):
        load_checkpoint(folder)


def test_unexpected_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, {"model.layers.0.mlp.gate_proj.bias": torch.zeros(48)})
    with pytest.raises(CheckpointError, match=r"unexpected tensor model\.layers\.0\.mlp\.gate_proj\.bias"):
        load_checkpoint(folder)


def test_rotary_frequencies_of_old_checkpoints_are_ignored(folder: Path) -> None:
    edit_tensors(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    assert len(load_checkpoint(folder).weights) == 21


def test_wrong_shape_is_named(folder: Path) -> None:
    edit_tensors(folder, {"model.norm.weight": torch.ones(31)})
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight has shape \(31,\), its config promises \(32,\)"
    ):
        load_checkpoint(folder)


def test_nan_is_found_when_a_tensor_is_read(folder: Path) -> None:
    edit_tensors(folder, {"model.norm.weight": torch.full((32,), torch.nan)})
    weights = load_checkpoint(folder).weights
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds NaN"):
        weights["model.norm.weight"]


def test_quantised_safetensors_are_refused(folder: Path) -> None:
    edit_tensors(folder, {"model.norm.weight": torch.ones(32, dtype=torch.int8)})
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight has type I8"):
        load_checkpoint(folder)


def test_contradicting_tied_head_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, random_model("llama", tie_word_embeddings=True))
    edit_tensors(folder, {"lm_head.weight": torch.zeros(97, 32)})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[1]"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_broken_json_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(folder)


def test_broken_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        load_checkpoint(folder)


def test_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"token id 5000, the model's vocab_size is 97"):
        load_checkpoint(folder)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "a/b/c", "model.gguf", Path("owner/name")])
def test_a_path_that_does_not_exist_is_no_hub_id(source: str | Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; name a folder"):
        load_checkpoint(source)


def test_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(repository: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"owner/name is no local file.*name the local folder"):
        load_checkpoint("owner/name")


def test_hub_id_is_read_from_the_fetched_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(repository: str, allow_patterns: list[str]) -> str:
        return str(folder)

    monkeypatch.setattr(huggingface, "snapshot_download", fetch)
    assert load_checkpoint("owner/name").source == "owner/name"


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"expert_count": 8}, r"expert_count = 8: mixture of experts \(MoE\) is not implemented"),
        ({"rope_dimension_count": 8}, r"rope\.dimension_count = 8"),
        ({"rope_factors": torch.full((8,), 3.0).numpy()}, "frequency factors are not those of Llama"),
    ],
)
def test_gguf_features_are_refused_by_name(metadata: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), GGMLQuantizationType.F32, **metadata)
    with pytest.raises(UnsupportedModelError, match=named):
        load_checkpoint(path)
