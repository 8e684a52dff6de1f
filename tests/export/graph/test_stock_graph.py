"""The graph with ONNX Runtime's stock attention: its numbers, and the runtime's own type and shape inference.

No kernel of the stock op runs without a GPU; `make gpu-check` runs them beside kvfold's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.cuda.attention_spec import ActivationDtype
from kvfold.plugins.paged_attention.schema import INPUTS, OP_TYPE
from tests.export.graph.evaluated_graph import check_numbers
from tests.export.graph.stock_graph import lower_with_stock_attention
from tests.export.graph.tiny_graphs import graph_of
from tests.tiny_model import VOCAB_SIZE, kv_scales, tiny_config, tiny_decoder, tiny_plan

Lower = Callable[[ActivationDtype, str, bool], Path]


def config() -> ModelConfig:
    """A producer, its consumer and a global layer."""
    biases = dict.fromkeys(("attention_bias", "output_bias", "mlp_bias"), True)
    return tiny_config(num_hidden_layers=3, qk_norm="head", **biases)


def plan_without_sinks(kv_dtype: str, head_sink: bool = False) -> FoldPlan:
    """Without sink tokens, that is."""
    dials = {"sliding_window": 32, "sink_size": 0, "head_sink": head_sink, "global_every": 3}
    preset = Preset.model_validate({"preset": "character", "kv_dtype": kv_dtype, **dials})
    return build_plan(preset, config().attention_shape)


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Lower:
    """The path of the lowered graph, by types of activations and caches, with learned sinks or without."""

    @cache
    def lower(dtype: ActivationDtype, kv_dtype: str, head_sink: bool) -> Path:
        directory, plan = tmp_path_factory.mktemp("graph"), plan_without_sinks(kv_dtype, head_sink)
        graph = graph_of(tiny_decoder(config(), plan), kv_scales(plan), directory)
        (directory / "cuda").mkdir()
        counts = lower_with_stock_attention(graph, directory / "cuda", plan, dtype)
        assert counts == {
            "activation_dtype": 1 + 13 + 12 + 7,  # embedding, linears, biases, norms
            "float_logits": 1,
            "stock_attention": 3,
        }
        return directory / "cuda" / "model.onnx"

    return lower


def why_not_loaded(model: onnx.ModelProto) -> str:
    """What the CPU provider says; inference with all of its checks comes before the search for kernels."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.strict_shape_type_inference", "1")
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return str(caught.value)


@pytest.mark.parametrize("head_sink", [False, True])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "missing"),
    [
        ("float16", "int8", "PagedAttention(1)"),
        ("float16", "float16", "PagedAttention(1)"),
        ("bfloat16", "bfloat16", "Gemm(13)"),  # it comes first, and the CPU has no bfloat16
    ],
)
def test_only_kernels_are_missing_without_cuda(
    dtype: ActivationDtype, kv_dtype: str, missing: str, head_sink: bool, lower: Lower
) -> None:
    model = onnx.load(lower(dtype, kv_dtype, head_sink))
    given = [node.input[INPUTS.index("head_sink")] for node in model.graph.node if node.op_type == OP_TYPE]
    sinks = [f"model.layers.{layer}.self_attn.sinks.{dtype}" for layer in range(2)]
    assert given == ([*sinks, ""] if head_sink else [""] * 3)
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 23), ("com.microsoft", 1)}
    expected = f"NOT_IMPLEMENTED : Could not find an implementation for {missing} node"
    assert expected in why_not_loaded(model)


def test_the_runtime_s_inference_finds_what_is_wrong(lower: Lower) -> None:
    path = lower("float16", "int8", True)

    def last_attention(model: onnx.ModelProto) -> onnx.NodeProto:
        return attention(model)[-1]

    def attention(model: onnx.ModelProto) -> list[onnx.NodeProto]:
        return [node for node in model.graph.node if node.op_type == OP_TYPE]

    for name, dtype in (
        ("cos_cache", np.float32),
        ("q_norm_weight", np.float32),
        ("head_sink", np.float32),
        ("k_scale", np.float16),
    ):
        model = onnx.load(path)
        changed = attention(model)[0 if name == "head_sink" else -1].input[INPUTS.index(name)]
        for tensor in model.graph.initializer:
            if tensor.name == changed:
                array = onnx.numpy_helper.to_array(tensor).astype(dtype)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, changed))
        assert re.search(rf"Type Error: .*\({re.escape(changed)}\) of operator", why_not_loaded(model))
    model = onnx.load(path)
    model.graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    assert "does not match expected type (tensor(int8))" in why_not_loaded(model)
    model = onnx.load(path)
    model.graph.output[-1].type.tensor_type.shape.dim[3].dim_value = 8
    assert "Inferred=16 Declared=8" in why_not_loaded(model)
    model = onnx.load(path)
    last_attention(model).attribute.append(onnx.helper.make_attribute("sink_size", 4))
    assert "Unrecognized attribute: sink_size" in why_not_loaded(model)


@pytest.mark.parametrize(("kv_dtype", "head_sink"), [("float16", False), ("int8", False), ("float16", True)])
@torch.no_grad()
def test_the_float16_graph_computes_what_the_decoder_does(
    kv_dtype: str, head_sink: bool, lower: Lower
) -> None:
    tokens = np.random.default_rng(6).integers(0, VOCAB_SIZE, 60)
    plan = plan_without_sinks(kv_dtype, head_sink)
    check_numbers(lower("float16", kv_dtype, head_sink), config(), plan, tokens)


def test_sink_tokens_are_beyond_the_stock_op(tmp_path: Path) -> None:
    plan = tiny_plan(config(), "character", "int8")
    graph = graph_of(tiny_decoder(config(), plan), kv_scales(plan), tmp_path)
    with pytest.raises(ExportError, match="has sink tokens, which the stock PagedAttention does not know"):
        lower_with_stock_attention(graph, tmp_path, plan, "float16")
