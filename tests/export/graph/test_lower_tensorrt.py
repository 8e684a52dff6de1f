"""Lowering for TensorRT: the graph's form, its numbers, and what NVIDIA's parser and builder make of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from kvfold.export.graph.graph_weights import load_graph
from kvfold.export.graph.linears import find_linears
from kvfold.export.graph.lower_tensorrt import lower_for_tensorrt
from kvfold.export.graph.onnx_from_decoder import export_graph
from kvfold.export.graph.passes import rms_norms
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.precision import Precision
from kvfold.plugins.contract.errors import ExportError, TargetError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.cuda.attention_spec import ActivationDtype
from kvfold.plugins.paged_attention.schema import DOMAIN
from kvfold.plugins.tensorrt.node_form import INPUTS_ATTRIBUTE
from tests.export.graph.evaluated_graph import check_numbers
from tests.export.graph.tensorrt_plans import build_plan_of
from tests.tiny_model import VOCAB_SIZE, kv_scales, tiny_config, tiny_decoder, tiny_plan

NUM_PAGES = 16
Export = Callable[..., ir.Model]
EMPTY = ir.Model(ir.Graph((), (), nodes=()), ir_version=10)


def config() -> ModelConfig:
    """A producer, its consumer and a global layer, with a head size that has kernels."""
    biases = dict.fromkeys(("attention_bias", "output_bias", "mlp_bias"), True)
    return tiny_config(num_hidden_layers=3, hidden_size=64, head_dim=64, qk_norm="head", **biases)


def plan_of(kv_dtype: str, head_sink: bool = False) -> FoldPlan:
    return tiny_plan(config(), "character", kv_dtype, head_sink)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The target-neutral graph, by type of its caches, with sink tokens or learned sinks."""

    @cache
    def traced(kv_dtype: str, head_sink: bool) -> Path:
        path, plan = tmp_path_factory.mktemp("graph") / "graph.onnx", plan_of(kv_dtype, head_sink)
        return export_graph(config(), plan, kv_scales(plan), path)

    def export(kv_dtype: str, head_sink: bool = False) -> ir.Model:
        plan = plan_of(kv_dtype, head_sink)
        return load_graph(traced(kv_dtype, head_sink), plan, tiny_decoder(config(), plan).state_dict())

    return export


def precisions(graph: ir.Model, int8: str = r"proj") -> dict[str, Precision]:
    """int8 for the linears whose name matches."""
    names = [linear.name for linear in find_linears(graph)]
    return {name: "int8" if re.search(int8, name) else "int8_a16" for name in names}


def lower(
    graph: ir.Model,
    directory: Path,
    plan: FoldPlan,
    precision: Mapping[str, Precision],
    dtype: ActivationDtype,
) -> tuple[ir.Model, dict[str, int]]:
    directory.mkdir()
    counts = lower_for_tensorrt(graph, directory, plan, precision, dict.fromkeys(precision, 0.03), dtype)
    return ir.load(directory / "model.onnx"), counts


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "head_sink"),
    [("float16", "int8", False), ("bfloat16", "bfloat16", False), ("float16", "int8", True)],
)
def test_the_graph_has_the_plugin_s_form_and_types(
    dtype: ActivationDtype, kv_dtype: str, head_sink: bool, export: Export, tmp_path: Path
) -> None:
    graph, plan = export(kv_dtype, head_sink), plan_of(kv_dtype, head_sink)
    model, counts = lower(graph, tmp_path / "trt", plan, precisions(graph), dtype)
    assert counts == {
        "quantize_dequantize_linears": 12,
        "activation_dtype": 1 + 12 + 1 + 7,  # embedding, biases, head, norms
        "float_logits": 1,
        "rms_norms": 7,
        "packed_qkv": 1,
        "tensorrt_attention": 3,
    }
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Split") == len(plan.layers)  # of gate and up alone
    assert not {"Expand", "Shape", "RMSNormalization"} & set(kinds)  # no slots of consumers any more
    shared = "key_cache,value_cache,cumulative_sequence_length,past_seqlens,block_table,cos_cache,sin_cache,"
    norms = "q_norm_weight,k_norm_weight" + (",k_scale,v_scale" if kv_dtype == "int8" else "")
    for index, node in enumerate(node for node in model.graph if node.domain == DOMAIN):
        slots = "slot_mapping," if plan.is_producer(index) else ""
        sink = "head_sink," if plan.layers[index].head_sink else ""
        assert node.attributes[INPUTS_ATTRIBUTE].as_string() == f"query,{shared}{slots}{sink}{norms}"
        assert len(node.outputs) == (3 if plan.is_producer(index) else 1)
        small = [value for value in node.inputs if value is not None and value.is_initializer()]
        assert {value.dtype for value in small} == {ir.DataType.FLOAT}
    element = ir.DataType[dtype.upper()]
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            scale = node.inputs[1]
            assert scale is not None
            assert scale.dtype == ir.DataType.FLOAT
            assert node.attributes["output_dtype"].as_int() == element.value
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert {value.dtype for value in model.graph.outputs[1:]} == {ir.DataType[kv_dtype.upper()]}
    large = [v for v in model.graph.initializers.values() if v.shape and np.prod(v.shape.numpy()) > 4096]
    floats = {value.dtype for value in large if "_int8" not in (value.name or "")}
    assert floats == {element} | {ir.DataType.FLOAT}  # float32: RoPE tables
    assert all("_cache" in (value.name or "") for value in large if value.dtype == ir.DataType.FLOAT)


@pytest.mark.parametrize(("kv_dtype", "head_sink"), [("float16", False), ("int8", False), ("float16", True)])
@torch.no_grad()
def test_the_float16_graph_computes_what_the_decoder_does(
    kv_dtype: str, head_sink: bool, export: Export, tmp_path: Path
) -> None:
    graph, plan = export(kv_dtype, head_sink), plan_of(kv_dtype, head_sink)
    lower(graph, tmp_path / "trt", plan, precisions(graph, "none"), "float16")
    tokens = np.random.default_rng(5).integers(0, VOCAB_SIZE, 60)
    check_numbers(tmp_path / "trt" / "model.onnx", config(), plan, tokens)


def test_norms_of_large_activations_do_not_overflow() -> None:
    """Squares of 3000 are beyond float16; the evaluator computes in the types that the graph says."""
    half = ir.TensorType(ir.DataType.FLOAT16)
    x = ir.val("x", ir.DataType.FLOAT16, ("tokens", 64))
    weight = ir.Value(name="weight", type=half, const_value=ir.tensor(np.full(64, 0.5, np.float16)))
    norm = ir.node("RMSNormalization", [x, weight], {"epsilon": 1e-5}, name="norm.RMSNormalization")
    y = norm.outputs[0]
    y.name, y.type, y.shape = "y", half, ir.Shape(("tokens", 64))
    graph = ir.Graph([x], [y], nodes=[norm], initializers=[weight], opset_imports={"": 23}, name="norm")
    model = ir.Model(graph, ir_version=10)
    assert rms_norms.apply(model, ir.DataType.FLOAT16) == 1
    large = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float16) * np.float16(3000)
    (result,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": large})
    expected = torch.nn.functional.rms_norm(torch.tensor(large).float(), (64,), torch.full((64,), 0.5), 1e-5)
    np.testing.assert_allclose(np.asarray(result, np.float32), expected, rtol=2**-10)


def test_caches_the_plugin_does_not_read_are_refused(tmp_path: Path) -> None:
    pairs: tuple[tuple[str, ActivationDtype], ...] = (
        ("float32", "float16"), ("bfloat16", "float16"), ("float16", "bfloat16"),
    )  # fmt: skip
    for kv_dtype, activations in pairs:
        with pytest.raises(
            TargetError, match=rf"as {kv_dtype}; .* reads {activations} and int8: set kv_dtype"
        ):
            lower_for_tensorrt(EMPTY, tmp_path, plan_of(kv_dtype), {}, {}, activations)


def test_a_linear_without_scale_or_place_is_an_error(export: Export, tmp_path: Path) -> None:
    graph, plan = export("int8"), plan_of("int8")
    with pytest.raises(ExportError, match=r"the first is model\.layers\.9\.mlp\.down_proj"):
        lower_for_tensorrt(graph, tmp_path, plan, {"model.layers.9.mlp.down_proj": "int8"}, {}, "float16")
    with pytest.raises(ExportError, match="quantize_dequantize_linears matched 0 places, 1 were expected"):
        lower_for_tensorrt(
            graph, tmp_path, plan, {"model.layers.9.mlp.down_proj": "int8"},
            {"model.layers.9.mlp.down_proj": 1.0}, "float16",
        )  # fmt: skip


def test_a_weight_beyond_float16_is_an_error(export: Export, tmp_path: Path) -> None:
    graph = export("int8")
    weight = graph.graph.initializers["model.layers.0.mlp.down_proj.weight"]
    weight.const_value = ir.tensor(np.full((64, 80), 1e5, dtype=np.float32))
    with pytest.raises(
        ExportError, match=r"layers\.0\.mlp\.down_proj\.weight .* beyond the range of float16"
    ):
        lower(graph, tmp_path / "trt", plan_of("int8"), precisions(graph, "none"), "float16")


@pytest.mark.parametrize("head_sink", [False, True])
def test_tensorrt_rtx_makes_int8_gemms_and_plugin_layers_of_it(
    head_sink: bool, export: Export, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="would show that TensorRT-RTX builds a plan from the graph")
    graph, plan = export("int8", head_sink), plan_of("int8", head_sink)
    precision = precisions(graph, r"qkv_proj|mlp\.")
    lower(graph, tmp_path / "trt", plan, precision, "float16")
    result = build_plan_of(tmp_path / "trt" / "model.onnx", "float16", "int8", tmp_path)
    assert result["plan"] > 0
    assert result["outputs"]["logits"] == ["FLOAT", [-1, VOCAB_SIZE]]
    layers = [line for line in "\n".join(result["log"]).splitlines() if ", LayerType: " in line]
    for name, kind in precision.items():
        own = [line for line in layers if f"[ONNX Layer: {name}.Gemm]" in line and computes_a_gemm(line)]
        assert len(own) == 2, name  # one for each profile
        # A fused layer may also quantise for the next one, so its outputs say nothing.
        operands = [line.partition(", Outputs: ")[0] for line in own]
        assert all(text.count("Datatype: Int8") == (2 if kind == "int8" else 0) for text in operands), name
    attention = [line for line in layers if re.search("LayerType: (PluginV3|custom_layer),", line)]
    assert len(attention) == 2 * len(plan.layers)


def computes_a_gemm(line: str) -> bool:
    """A matrix product, alone or fused with what follows it."""
    return "LayerType: gemm," in line or "LayerType: runtime_fusion," in line
