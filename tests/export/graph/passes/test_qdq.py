"""Q/DQ lowering for TensorRT, executed by ONNX Runtime's own kernels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from kvfold.export.graph.passes import quantize_dequantize_linears

TOKENS, IN_FEATURES, OUT_FEATURES = 5, 24, 10


def linear_model(weight: np.ndarray, bias: np.ndarray) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, ("tokens", IN_FEATURES))
    constants = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(ir.DataType.FLOAT))
        for name, array in (("weight", weight), ("bias", bias))
    ]
    node = ir.node("Gemm", [x, *constants], {"transB": 1}, name="proj.Gemm")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(("tokens", OUT_FEATURES))
    graph = ir.Graph([x], [y], nodes=[node], initializers=constants, opset_imports={"": 23}, name="linear")
    return ir.Model(graph, ir_version=10)


def test_static_scales_quantise_both_operands() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((TOKENS, IN_FEATURES), dtype=np.float32)
    weight = rng.standard_normal((OUT_FEATURES, IN_FEATURES), dtype=np.float32)
    bias = rng.standard_normal(OUT_FEATURES, dtype=np.float32)
    scale = float(np.abs(x).max() / 127)
    model = linear_model(weight, bias)
    assert quantize_dequantize_linears.apply(model, {"proj"}, {"proj": scale}) == 1
    session = ort.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(["y"], {"x": x})
    exact = x @ weight.T + bias
    assert 0 < np.abs(y - exact).max() < 0.1
    rounded = np.rint(x / np.float32(scale)).clip(-128, 127) * np.float32(scale)
    weight_scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    expected = rounded @ (np.rint(weight / weight_scale) * weight_scale).T + bias
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_linears_not_named_stay_float() -> None:
    model = linear_model(np.ones((OUT_FEATURES, IN_FEATURES), np.float32), np.zeros(OUT_FEATURES, np.float32))
    assert quantize_dequantize_linears.apply(model, {"other"}, {}) == 0
    assert [node.op_type for node in model.graph] == ["Gemm"]
