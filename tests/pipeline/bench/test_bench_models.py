"""The peers' models hold the original's weights: the Hugging Face folder, the GGUF, and the cache of both."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.model.families import FAMILIES
from kvfold.pipeline.bench import prepared_models
from kvfold.pipeline.bench.contenders import llama_cpp, llama_cpp_gguf
from kvfold.pipeline.bench.models.gguf_from_huggingface import ARCHITECTURES, ORIGINAL, write_gguf
from kvfold.pipeline.bench.models.huggingface_folder import write_huggingface_folder
from kvfold.pipeline.bench.prepared_models import PreparedModels
from kvfold.pipeline.bench.processes.jobs import Answer, Job, Prepare
from kvfold.pipeline.bench.processes.process import WorkerError
from kvfold.plugins.contract.errors import TargetError
from tests.export.tiny_checkpoints import MODELS, random_model, write_folder
from tests.export.tiny_gguf import interleave

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def tiny_checkpoint(folder: Path, name: str = "llama", **changes: object) -> Checkpoint:
    """A random model; Q8_0 wants rows of whole blocks of 32."""
    return load_checkpoint(write_folder(folder, random_model(name, intermediate_size=64, **changes)))


@pytest.mark.parametrize("name", MODELS)
def test_folder_is_the_same_model(name: str, tmp_path: Path) -> None:
    original = random_model(name, intermediate_size=64)
    checkpoint = load_checkpoint(write_folder(tmp_path / "original", original))
    folder = tmp_path / "folder"
    folder.mkdir()
    write_huggingface_folder(checkpoint, folder)
    again = load_checkpoint(folder)
    assert again.config == checkpoint.config
    assert again.tokenizer.json == checkpoint.tokenizer.json
    tokens = torch.arange(20)[None]
    copied = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.inference_mode():
        assert torch.equal(copied(tokens).logits, original(tokens).logits)


def test_gguf_is_written_as_llama_cpp_names_the_family() -> None:
    for family in FAMILIES:
        if family.gguf_architecture is not None and family.name in ARCHITECTURES:
            assert ARCHITECTURES[family.name] == (family.gguf_architecture, family.gguf_interleaved)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "llama-biased"])
def test_gguf_holds_the_weights_in_eight_bits(name: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, name)
    family = checkpoint.config.family
    folder = tmp_path / "folder"
    folder.mkdir()
    write_huggingface_folder(checkpoint, folder)
    write_gguf(folder, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    stored = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    weights = load_file(folder / "model.safetensors")
    assert len(stored) == len(weights)
    query = weights["model.layers.1.self_attn.q_proj.weight"]
    if family == "llama":
        query = interleave(torch.from_numpy(query), heads=4).numpy()
    close = {"rtol": 0, "atol": np.abs(query).max() / 127}
    for theirs, ours in (("attn_output", "self_attn.o_proj"), ("ffn_gate", "mlp.gate_proj")):
        if (bias := weights.get(f"model.layers.1.{ours}.bias")) is not None:
            np.testing.assert_array_equal(stored[f"blk.1.{theirs}.bias"], bias)
    np.testing.assert_allclose(stored["blk.1.attn_q.weight"], query, **close)
    np.testing.assert_array_equal(stored["output_norm.weight"], weights["model.norm.weight"])
    assert reader.fields[f"{family}.vocab_size"].contents() == checkpoint.config.vocab_size


def test_gguf_refuses_rope_scaling(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, rope_scaling=LLAMA3)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_huggingface_folder(checkpoint, folder)
    with pytest.raises(ValueError, match="RoPE scaling llama3"):
        write_gguf(folder, tmp_path / "model.gguf")


LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.5] * 8}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mistral", {"sliding_window": 16}, "windows of 16 tokens"),
        (
            "qwen2",
            {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
            "windows of 16",
        ),
        (
            "llama",
            {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
            "RoPE scaling longrope",
        ),
    ],
)
def test_gguf_refuses_what_it_cannot_say_of_a_copied_folder(
    name: str, changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    """Its config.json is as its publisher wrote it, and may lack what ours have."""
    checkpoint = tiny_checkpoint(tmp_path / "original", name, **changes)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_huggingface_folder(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    if name != "llama":
        config.pop("rope_scaling", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        write_gguf(folder, tmp_path / "model.gguf")


def test_gguf_refuses_other_families(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "original", "gemma2")
    folder = tmp_path / "folder"
    folder.mkdir()
    write_huggingface_folder(checkpoint, folder)
    with pytest.raises(ValueError, match=r"the GGUF writer knows llama, .*not gemma2"):
        write_gguf(folder, tmp_path / "model.gguf")


def test_a_model_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Prepare] = []

    def convert(job: Job, python: Path) -> Answer:
        assert isinstance(job, Prepare)
        done.append(job)
        (Path(job.target) / "model").write_text((Path(job.source) / "config.json").read_text())
        return Answer("1.0", {})

    monkeypatch.setattr(prepared_models, "run_job", convert)
    models = PreparedModels(tmp_path / "work", tiny_checkpoint(tmp_path))
    first = models.prepare("llama_cpp", "1.0", Path("python"))
    assert models.prepare("llama_cpp", "1.0", Path("python")) == first
    assert len(done) == 1
    assert models.prepare("llama_cpp", "1.1", Path("python")) != first
    assert (first / "model").is_file()


def test_a_model_of_an_older_layout_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layout 3 had links that name the place of the work folder."""
    monkeypatch.setattr(prepared_models, "run_job", lambda job, python: Answer("1.0", {}))
    models = PreparedModels(tmp_path / "work", tiny_checkpoint(tmp_path))
    found = models.prepare("llama_cpp_gguf", "1.0", Path("python"))
    old = found.with_name("llama_cpp_gguf-1.0-3")
    old.mkdir()
    assert models.prepare("llama_cpp_gguf", "1.0", Path("python")) == found != old


def test_an_interrupted_conversion_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[bool] = []

    def convert(job: Job, python: Path) -> Answer:
        assert isinstance(job, Prepare)
        attempts.append((Path(job.target) / "half").exists())
        (Path(job.target) / "half").touch()
        if len(attempts) == 1:
            raise WorkerError("exit code -9")
        return Answer("1.0", {})

    monkeypatch.setattr(prepared_models, "run_job", convert)
    models = PreparedModels(tmp_path / "work", tiny_checkpoint(tmp_path))
    with pytest.raises(WorkerError):
        models.prepare("llama_cpp", "1.0", Path("python"))
    assert models.prepare("llama_cpp", "1.0", Path("python")).is_dir()
    assert attempts == [False, False]


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(job: Job, python: Path) -> Answer:
        assert isinstance(job, Prepare)
        (Path(job.target) / "half").touch()
        raise failure

    monkeypatch.setattr(prepared_models, "run_job", convert)
    models = PreparedModels(tmp_path / "work", tiny_checkpoint(tmp_path))
    failure: Exception = WorkerError("exit code 1")
    with pytest.raises(WorkerError):
        models.prepare("llama_cpp", "1.0", Path("python"))
    failure = OSError("No space left on device")
    with pytest.raises(TargetError, match=r"llama_cpp-1\.0.* No space left .* --work"):
        models.prepare("llama_cpp", "1.0", Path("python"))
    (checkpoint,) = (tmp_path / "work").iterdir()
    (whole,) = checkpoint.iterdir()
    assert whole.name.startswith("huggingface"), "what was whole is kept"


def test_llama_cpp_reads_the_gguf_file_itself(tmp_path: Path) -> None:
    """Where the checkpoint is one; not a file made from its weights. A work folder may be moved."""
    folder = write_folder(tmp_path / "folder", random_model("llama", intermediate_size=64))
    path = PreparedModels(tmp_path / "served", load_checkpoint(folder)).served_gguf()
    work = tmp_path / "work"
    source, target = work / "source", work / "target"
    source.mkdir(parents=True)
    target.mkdir()
    write_huggingface_folder(load_checkpoint(path), source)
    llama_cpp_gguf.prepare(source, target)
    work = work.rename(tmp_path / "moved")
    source, target = work / "source", work / "target"
    assert (target / llama_cpp.MODEL).samefile(path)
    (source / ORIGINAL).unlink()
    with pytest.raises(FileNotFoundError, match="the checkpoint is no GGUF file"):
        llama_cpp_gguf.prepare(source, target)
