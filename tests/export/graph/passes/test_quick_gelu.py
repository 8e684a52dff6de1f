"""silu as one node, by ONNX Runtime's own kernels: what it computes, and what is left alone."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from kvfold.export.graph.passes import quick_gelu

TOKENS, FEATURES = 4, 256
Gate = Literal["silu", "another factor", "sigmoid read twice"]


def gated_model(gate_is: Gate) -> ir.Model:
    """activation(gate) * up of one packed projection, before any pass."""
    packed = ir.val("packed", ir.DataType.FLOAT, ("tokens", 2 * FEATURES))
    split = ir.node("Split", [packed], {"axis": -1, "num_outputs": 2}, num_outputs=2, name="mlp.Split")
    gate, up = split.outputs
    sigmoid = ir.node("Sigmoid", [gate], name="mlp.Sigmoid")
    factor = up if gate_is == "another factor" else gate
    activated = ir.node("Mul", [factor, sigmoid.outputs[0]], name="mlp.Mul")
    other = sigmoid.outputs[0] if gate_is == "sigmoid read twice" else up
    product = ir.node("Mul", [activated.outputs[0], other], name="mlp.Mul.2")
    y = product.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(("tokens", FEATURES))
    nodes = [split, sigmoid, activated, product]
    return ir.Model(ir.Graph([packed], [y], nodes=nodes, opset_imports={"": 23}, name="gated"), ir_version=10)


def run(model: ir.Model, packed: np.ndarray) -> np.ndarray:
    """By the CPU provider, which fuses nothing of its own here."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    serialized = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"packed": packed})
    return np.asarray(y)


def test_silu_is_one_node_and_the_same_function() -> None:
    packed = 20 * np.random.default_rng(0).standard_normal((TOKENS, 2 * FEATURES), dtype=np.float32)
    model = gated_model("silu")
    before = run(model, packed)
    assert quick_gelu.apply(model) == 1
    assert [(node.op_type, node.name) for node in model.graph] == [
        ("Split", "mlp.Split"),
        ("QuickGelu", "mlp.QuickGelu"),
        ("Mul", "mlp.Mul.2"),
    ]
    np.testing.assert_allclose(run(model, packed), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gate_is", ["another factor", "sigmoid read twice"])
def test_what_is_no_silu_stays(gate_is: Gate) -> None:
    model = gated_model(gate_is)
    assert quick_gelu.apply(model) == 0
    assert [node.op_type for node in model.graph] == ["Split", "Sigmoid", "Mul", "Mul"]
