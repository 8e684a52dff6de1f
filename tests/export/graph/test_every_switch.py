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
from kvfold.export.graph.linears import find_linears
from kvfold.export.graph.lower_cpu import lower_for_cpu
from kvfold.export.graph.lower_cuda import lower_for_cuda
from kvfold.export.graph.lower_tensorrt import lower_for_tensorrt
from kvfold.export.graph.onnx_from_decoder import export_graph
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.precision import Precision
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.contract.fold_plan import FoldPlan, KvDtype
from tests.export.graph.evaluated_graph import check_numbers
from tests.export.graph.tensorrt_plans import build_plan_of
from tests.export.graph.tiny_engines import NUM_PAGES, EagerEngine, run_chunks, tokens_for
from tests.paging import Pager
from tests.tiny_model import VOCAB_SIZE, dense_logits, tiny_config, tiny_decoder

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


def config_of(name: str) -> ModelConfig:
    """With heads that GPU kernels have."""
    return tiny_config(head_dim=64, **SWITCHES[name])


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
        config, path = config_of(name), tmp_path_factory.mktemp(name) / "graph.onnx"
        return export_graph(config, plan_of(config, kv_dtype), {}, path)

    def export(name: str, kv_dtype: KvDtype) -> ir.Model:
        config = config_of(name)
        plan = plan_of(config, kv_dtype)
        return load_graph(traced(name, kv_dtype), plan, tiny_decoder(config, plan).state_dict())

    return export


@EVERY
@torch.no_grad()
def test_the_paged_decoder_equals_the_dense_one(name: str) -> None:
    config = config_of(name)
    plan = plan_of(config, "float32")
    decoder, tokens = tiny_decoder(config, plan), tokens_for(1)
    paged = run_chunks(EagerEngine(decoder, {}), Pager(plan, NUM_PAGES), tokens)
    dense = dense_logits(decoder, torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(paged, dense, atol=2e-4)


@EVERY
@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
@torch.no_grad()
def test_float16_graphs_compute_what_the_decoder_does(
    name: str, target: str, export: Export, tmp_path: Path
) -> None:
    config, graph = config_of(name), export(name, "float16")
    plan = plan_of(config, "float16")
    if target == "cuda":
        lower_for_cuda(graph, tmp_path, plan, "float16")
    else:
        lower_for_tensorrt(graph, tmp_path, plan, {}, {}, "float16")
    check_numbers(tmp_path / "model.onnx", config, plan, tokens_for(6))


@EVERY
def test_tensorrt_rtx_builds_a_plan_of_it(name: str, export: Export, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="would show that TensorRT-RTX builds a plan from the graph")
    config, graph = config_of(name), export(name, "float16")
    (tmp_path / "trt").mkdir()
    int8 = [linear.name for linear in find_linears(graph) if ".mlp." in linear.name]
    precision: dict[str, Precision] = dict.fromkeys(int8, "int8")
    scales = dict.fromkeys(int8, 0.03)
    plan = plan_of(config, "float16")
    lower_for_tensorrt(graph, tmp_path / "trt", plan, precision, scales, "float16")
    result = build_plan_of(tmp_path / "trt" / "model.onnx", "float16", "float16", tmp_path)
    assert result["plan"] > 0
    assert result["outputs"]["logits"] == ["FLOAT", [-1, VOCAB_SIZE]]


@pytest.mark.parametrize(
    ("target", "head_dim", "said"),
    [
        ("cpu", 320, "the cpu target reads 2 to 256 in steps of 2"),
        ("cuda", 40, "the cuda target reads 64 to 256 in steps of 8"),
        ("TensorRT", 84, "TensorRT reads 64 to 256 in steps of 8"),
    ],
)
def test_heads_that_a_target_does_not_read_are_refused(
    target: str, head_dim: int, said: str, tmp_path: Path
) -> None:
    plan = FoldPlan.of(AttentionShape(2, 4, 2, head_dim), "int8")
    unread = ir.Model(ir.Graph((), (), nodes=()), ir_version=10)
    with pytest.raises(TargetError, match=f"a head has {head_dim} channels, {said}; build for another"):
        match target:
            case "cpu":
                lower_for_cpu(unread, tmp_path, plan, {})
            case "cuda":
                lower_for_cuda(unread, tmp_path, plan, "float16")
            case _:
                lower_for_tensorrt(unread, tmp_path, plan, {}, {}, "float16")
