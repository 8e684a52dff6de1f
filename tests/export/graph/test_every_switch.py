"""What families differ in, one decoder at a time: its engine computes what PyTorch does, on every target."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from kvfold.export.graph.graph_weights import load_graph
from kvfold.export.graph.lower_cuda import lower_for_cuda
from kvfold.export.graph.lower_tensorrt import lower_for_tensorrt
from kvfold.export.graph.onnx_from_decoder import export_graph
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.fold_plan import FoldPlan, KvDtype
from tests.export.graph.evaluated_graph import check_numbers
from tests.export.graph.tiny_engines import NUM_PAGES, EagerEngine, cpu_engine, run_chunks, tokens_for
from tests.paging import Pager
from tests.tiny_model import dense_logits, tiny_config, tiny_decoder

PARTIAL_YARN = {
    "partial_rotary_factor": 0.75,
    "scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
# Named after the families that have them; a sequence of 60 tokens goes over every window.
SWITCHES: dict[str, dict[str, Any]] = {
    "gemma2": {
        "norm_placement": "both",
        "hidden_act": "gelu_tanh",
        "attention_scale": 0.2,
        "attention_softcap": 5.0,
        "final_softcap": 3.0,
        "sliding_windows": (24, None) * 2,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "norm_placement": "both",
        "hidden_act": "gelu_tanh",
        "qk_norm": "head",
        "ropes": ({"theta": 1e4}, {"theta": 1e6, "scaling": {"rope_type": "linear", "factor": 8.0}}),
        "layer_ropes": (0, 0, 0, 1),
        "sliding_windows": (16, 16, 16, None),
    },
    "olmo2": {"norm_placement": "post", "qk_norm": "projection"},
    "smollm3": {"ropes": ({"theta": 1e4}, {"partial_rotary_factor": 0.0}), "layer_ropes": (0, 0, 0, 1)},
    "phi4": {"ropes": (PARTIAL_YARN,), "sliding_windows": (40,) * 4},
}
Export = Callable[[str, KvDtype], ir.Model]
EVERY = pytest.mark.parametrize("name", SWITCHES)


def plan_of(config: ModelConfig, kv_dtype: KvDtype) -> FoldPlan:
    """The checkpoint's own plan, with a consumer where the first two layers see and turn alike."""
    shape = config.attention_shape
    plan = FoldPlan.of(shape, kv_dtype)
    alike = shape.windows[0] == shape.windows[1]
    return plan.with_layers([1], donor=0) if alike else plan


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The target-neutral graph by name and type of caches, traced once."""

    @cache
    def traced(name: str, kv_dtype: KvDtype) -> Path:
        config, path = tiny_config(**SWITCHES[name]), tmp_path_factory.mktemp(name) / "graph.onnx"
        return export_graph(config, plan_of(config, kv_dtype), {}, path)

    def export(name: str, kv_dtype: KvDtype) -> ir.Model:
        config = tiny_config(**SWITCHES[name])
        plan = plan_of(config, kv_dtype)
        return load_graph(traced(name, kv_dtype), plan, tiny_decoder(config, plan).state_dict())

    return export


@EVERY
@torch.no_grad()
def test_the_paged_decoder_equals_the_dense_one(name: str) -> None:
    config = tiny_config(**SWITCHES[name])
    plan = plan_of(config, "float32")
    decoder, tokens = tiny_decoder(config, plan), tokens_for(1)
    paged = run_chunks(EagerEngine(decoder, {}), Pager(plan, NUM_PAGES), tokens)
    dense = dense_logits(decoder, torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(paged, dense, atol=2e-4)


@EVERY
@torch.no_grad()
def test_the_float_engine_equals_pytorch(name: str, export: Export, tmp_path: Path) -> None:
    config = tiny_config(**SWITCHES[name])
    plan = plan_of(config, "float32")
    decoder, tokens = tiny_decoder(config, plan), tokens_for(3)
    engine = cpu_engine(export(name, "float32"), plan, tmp_path, "float32")
    logits = run_chunks(engine, Pager(plan, NUM_PAGES), tokens)
    dense = dense_logits(decoder, torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(logits, dense, atol=2e-3)


@EVERY
@torch.no_grad()
def test_rows_of_int8_linears_do_not_depend_on_chunking(name: str, export: Export, tmp_path: Path) -> None:
    plan = plan_of(tiny_config(**SWITCHES[name]), "float32")
    engine, tokens = cpu_engine(export(name, "float32"), plan, tmp_path, "int8"), tokens_for(4)
    chunked = run_chunks(engine, Pager(plan, NUM_PAGES), tokens)
    whole = engine.execute(Pager(plan, NUM_PAGES).step({0: tokens.tolist()}))
    np.testing.assert_array_equal(whole, chunked)


@EVERY
@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
@torch.no_grad()
def test_float16_graphs_compute_what_the_decoder_does(
    name: str, target: str, export: Export, tmp_path: Path
) -> None:
    config, graph = tiny_config(**SWITCHES[name]), export(name, "float16")
    plan = plan_of(config, "float16")
    if target == "cuda":
        lower_for_cuda(graph, tmp_path, plan, "float16")
    else:
        lower_for_tensorrt(graph, tmp_path, plan, {}, {}, "float16")
    check_numbers(tmp_path / "model.onnx", config, plan, tokens_for(6))
