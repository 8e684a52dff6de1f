"""A graph's weights by reference: bound by name, read when written, stored in half the bytes where exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from kvfold.export.graph.graph_weights import load_graph
from kvfold.export.graph.model_files import save_model
from kvfold.export.graph.onnx_from_decoder import export_graph
from kvfold.export.graph.passes import exact_storage
from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.contract.step import DATA_SUFFIX, MODEL_FILE
from kvfold.runtime.engine.engine_config import EngineConfig
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from tests.export.graph.tiny_graphs import graph_of
from tests.paging import Pager, budget_of
from tests.tiny_model import VOCAB_SIZE, hugging_face_names, tiny_config, tiny_decoder, tiny_plan

CONFIG = tiny_config(attention_bias=True, tie_word_embeddings=True)
PLAN = tiny_plan(CONFIG, "horizon")
TOKENS = list(range(40))


class CountedWeights(Mapping[str, Tensor]):
    """Weights that note who is asked for."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.asked.append(name)
        return self.weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def logits(directory: Path) -> np.ndarray:
    """What ONNX Runtime with kvfold's kernels computes from `model.onnx` of a folder."""
    facts = EngineConfig(
        target="cpu", backend="cpu", vocab_size=VOCAB_SIZE, max_context_length=256, fingerprint="test"
    )
    files = EngineFiles(directory, facts, PLAN)
    engine = OnnxRuntimeEngine.load(files, budget_of(files, 16), threads=2)
    return engine.execute(Pager(PLAN, 16).step({0: TOKENS})).copy()


@torch.no_grad()
def test_nothing_is_read_before_it_is_written_and_each_name_finds_its_tensor(tmp_path: Path) -> None:
    decoder = tiny_decoder(CONFIG, PLAN)
    weights = CountedWeights(hugging_face_names(decoder))
    path = export_graph(CONFIG, PLAN, {}, tmp_path / "graph.onnx")
    model = load_graph(path, PLAN, weights)
    assert not weights.asked
    (tmp_path / "names").mkdir()
    save_model(model, tmp_path / "names" / MODEL_FILE)
    assert sorted(weights.asked) == sorted(weights)  # each once
    (tmp_path / "packed").mkdir()
    save_model(graph_of(decoder, {}, tmp_path), tmp_path / "packed" / MODEL_FILE)
    np.testing.assert_array_equal(logits(tmp_path / "names"), logits(tmp_path / "packed"))


@torch.no_grad()
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_weights_of_half_the_bytes_stay_so_and_compute_the_same(half: torch.dtype, tmp_path: Path) -> None:
    decoder = tiny_decoder(CONFIG, PLAN)
    folded = decoder.get_parameter("model.layers.1.self_attn.qkv_proj.weight")
    for parameter in decoder.parameters():
        if parameter is not folded:
            parameter.data = parameter.data.to(half).float()
    for name in ("wide", "half"):
        (tmp_path / name).mkdir()
        model = graph_of(decoder, {}, tmp_path)
        if name == "half":
            # The tied embedding, and four matrices a layer, one of which folding changed.
            assert exact_storage.apply(model) == 1 + 4 * CONFIG.num_hidden_layers - 1
        save_model(model, tmp_path / name / MODEL_FILE)
    np.testing.assert_array_equal(logits(tmp_path / "wide"), logits(tmp_path / "half"))
    onnx.checker.check_model(str(tmp_path / "half" / MODEL_FILE))
    sizes = [(tmp_path / name / (MODEL_FILE + DATA_SUFFIX)).stat().st_size for name in ("wide", "half")]
    assert sizes[1] < 0.7 * sizes[0]


def test_a_weight_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = export_graph(CONFIG, PLAN, {}, tmp_path / "graph.onnx")
    weights = hugging_face_names(tiny_decoder(CONFIG, PLAN))
    del weights["model.norm.weight"]
    with pytest.raises(ExportError, match=r"a weight model\.norm\.weight, which the weights do not"):
        load_graph(path, PLAN, weights)
