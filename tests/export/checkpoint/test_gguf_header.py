"""A GGUF file's header: what the gguf package reads, and damage that is named wherever it is."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvfold.export.checkpoint.gguf_header import read_gguf_header
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.checkpoint.read_config import read_config
from kvfold.plugins.contract.errors import CheckpointError
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.export.tiny_gguf import write_gguf

EVERY_KIND = {
    "uint8": 200,
    "int8": -100,
    "uint16": 60_000,
    "int16": -30_000,
    "uint32": 4_000_000_000,
    "int32": -2_000_000_000,
    "float32": 0.25,
    "uint64": 1 << 60,
    "int64": -(1 << 60),
    "float64": 0.1,
    "bool": True,
    "string": "d\u00e9j\u00e0 vu",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in 8 bits whose metadata hold a value of every kind, and arrays."""
    folder = tmp_path_factory.mktemp("gguf")
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for kind, value in EVERY_KIND.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_array("a.texts", ["", "\u00e9", "abc"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_custom_alignment(64)
    for name in ("one", "two"):
        values = np.arange(96, dtype=np.float32).reshape(3, 32)
        packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("floats", np.array([0.5, 2.0, 8.0], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def test_it_reads_what_the_gguf_package_reads(path: Path) -> None:
    header, theirs = read_gguf_header(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items()}
    assert header.metadata == {name: value for name, value in fields.items() if not name.startswith("GGUF.")}
    assert {
        tensor.name: (tensor.shape, tensor.kind, tensor.offset) for tensor in header.tensors.values()
    } == {
        tensor.name: (tuple(reversed(tensor.shape.tolist())), tensor.tensor_type, tensor.data_offset)
        for tensor in theirs.tensors
    }


def test_small_float_tensors_are_read(path: Path) -> None:
    header = read_gguf_header(path)
    assert header.read_floats("floats") == (0.5, 2.0, 8.0)
    assert header.read_floats("absent") is None
    with pytest.raises(CheckpointError, match="tensor one is not float32"):
        header.read_floats("one")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(
    keep=st.floats(0, 1), flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), max_size=4)
)
def test_damage_is_an_error_of_ours(
    path: Path, tmp_path: Path, keep: float, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(path.read_bytes())
    for position, mask in flips:
        content[position % len(content)] ^= mask
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content[: int(len(content) * keep)])
    with contextlib.suppress(CheckpointError):
        read_gguf_header(damaged)


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_another_version_is_named(path: Path, tmp_path: Path, version: int) -> None:
    content = path.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(content[:4] + version.to_bytes(4, "little") + content[8:])
    with pytest.raises(CheckpointError, match=f"GGUF version {version} is not one of"):
        read_gguf_header(other)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_the_config_alone_is_the_checkpoint_s(kind: str, tmp_path: Path) -> None:
    model = random_model("llama")
    if kind == "gguf":
        source = write_gguf(tmp_path / "model.gguf", model, gguf.GGMLQuantizationType.F32)
    else:
        source = write_folder(tmp_path / "model", model)
    code = (
        "import sys; from kvfold.export.checkpoint.read_config import read_config;"
        "print(read_config(sys.argv[1]).model_dump_json());"
        "sys.exit(bool({'torch', 'gguf', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(source)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == load_checkpoint(source).config.model_dump(mode="json")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_config_is_named_as_ever(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError) as ours:
        read_config(tmp_path)
    with pytest.raises(CheckpointError) as whole:
        load_checkpoint(tmp_path)
    assert str(ours.value) == str(whole.value)
