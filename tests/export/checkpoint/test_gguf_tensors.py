"""Tensors of GGUF files: all that llama.cpp's quantiser makes, value for value, a block of rows at a time."""

from __future__ import annotations

import base64
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize

from kvfold.export.checkpoint import gguf_tensors
from kvfold.export.checkpoint.gguf_tensors import read_values
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.checkpoint.read_config import read_config
from kvfold.plugins.contract.errors import UnsupportedModelError
from tests.export.tiny_checkpoints import random_model
from tests.export.tiny_gguf import write_gguf

# Written once with llama.cpp; `made_by` in the file says how.
BLOCKS = json.loads((Path(__file__).parent / "data" / "llama_cpp_blocks.json").read_text())["blocks"]
DOWN = "model.layers.1.mlp.down_proj.weight"
F32 = GGMLQuantizationType.F32


def rows_of(kind: str, count: int) -> tuple[np.ndarray, torch.Tensor]:
    """Rows of 256 values as llama.cpp stores them, and what it reads there."""
    block, values = (base64.b64decode(BLOCKS[kind][name]) for name in ("block", "values"))
    stored = np.tile(np.frombuffer(block, np.uint8), (count, 1))
    return stored, torch.from_numpy(np.tile(np.frombuffer(values, np.float32), (count, 1)))


@pytest.mark.parametrize("kind", BLOCKS)
def test_values_are_those_of_llama_cpp(kind: str, tmp_path: Path) -> None:
    stored, values = rows_of(kind, 32)
    path = write_gguf(
        tmp_path / "model.gguf",
        random_model("llama", intermediate_size=256),
        F32,
        {DOWN: (GGMLQuantizationType[kind], stored)},
    )
    assert torch.equal(load_checkpoint(path).weights[DOWN], values)


def test_a_fused_tensor_is_quantised_as_one() -> None:
    """Its rows are read apart."""
    stored, values = rows_of("Q4_K", 48)
    assert torch.equal(read_values(stored[16:32], GGMLQuantizationType.Q4_K), values[16:32])


def test_blocks_of_rows_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, values = rows_of("Q6_K", 7)
    monkeypatch.setattr(gguf_tensors, "BLOCK", 512)
    assert torch.equal(read_values(stored, GGMLQuantizationType.Q6_K), values)


def test_dequantising_takes_little_more_than_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package takes several times as much, so a big embedding is not handed to it at once."""
    stored, _ = rows_of("Q4_K", 2048)
    monkeypatch.setattr(gguf_tensors, "BLOCK", 2**14)
    peaks = []
    for read in (read_values, dequantize):
        tracemalloc.start()
        read(stored, GGMLQuantizationType.Q4_K)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 2**20 < peaks[1], "torch's own memory, the values, is not counted"


@pytest.mark.parametrize(("kind", "size"), [("Q8_K", 292), ("I8", 256)])
def test_a_type_that_nobody_reads_is_refused_before_a_value_is(kind: str, size: int, tmp_path: Path) -> None:
    raw = np.zeros((32, size), np.int8 if kind == "I8" else np.uint8)
    model = random_model("llama", intermediate_size=256)
    path = write_gguf(tmp_path / "model.gguf", model, F32, {DOWN: (GGMLQuantizationType[kind], raw)})
    assert read_config(str(path)).intermediate_size == 256
    with pytest.raises(
        UnsupportedModelError, match=rf"blk\.1\.ffn_down\.weight has .*{kind}.*llama-quantize"
    ):
        load_checkpoint(path)


def test_a_type_of_a_later_llama_cpp_is_refused_by_its_number(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), F32)
    content = bytearray(path.read_bytes())
    name = b"blk.1.ffn_down.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8
    content[at : at + 4] = (250).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=r"ffn_down\.weight has type number 250.*upgrade"):
        load_checkpoint(path)
