"""Gemm -> Q/DQ around both operands: int8 as TensorRT reads it.

TensorRT takes symmetric Q/DQ only, with scales that are constant when it builds: one static scale
per activation tensor, one scale per output channel of a weight. There are no zero points: int8 is said
by `output_dtype`, since TensorRT's parser holds a zero point's type against `output_dtype`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, partial

import numpy as np
import onnx_ir as ir

from kvfold.export.graph.constants import add_constant, add_lazy_constant
from kvfold.export.graph.linears import Linear, find_linears
from kvfold.plugins.int8_linear.packing import quantize_weight


def apply(model: ir.Model, names: Collection[str], activation_scales: Mapping[str, float]) -> int:
    """Rewrite the linears with these names; `activation_scales` has one static scale for each."""
    matches = [linear for linear in find_linears(model) if linear.name in names]
    quantize = lru_cache(maxsize=1)(lambda index: quantize_weight(matches[index].weight))
    for index, linear in enumerate(matches):
        _replace(model, linear, activation_scales[linear.name], partial(quantize, index))
    return len(matches)


def _replace(
    model: ir.Model,
    linear: Linear,
    activation_scale: float,
    quantized: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> None:
    x_scale = add_constant(
        model, f"{linear.name}.activation_scale", np.asarray(activation_scale, dtype=np.float32)
    )
    weight = add_lazy_constant(
        model, f"{linear.name}.weight_int8", ir.DataType.INT8, linear.shape, lambda: quantized()[0]
    )
    weight_scale = add_lazy_constant(
        model, f"{linear.name}.weight_scale", ir.DataType.FLOAT, linear.shape[:1], lambda: quantized()[1]
    )
    name = linear.name
    quantize = ir.node(
        "QuantizeLinear",
        [linear.x, x_scale],
        {"output_dtype": ir.DataType.INT8.value},
        name=f"{name}.QuantizeLinear",
    )
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], x_scale], name=f"{name}.DequantizeLinear")
    dequantize_weight = ir.node(
        "DequantizeLinear", [weight, weight_scale], {"axis": 0}, name=f"{name}.weight.DequantizeLinear"
    )
    gemm = ir.node(
        "Gemm",
        [
            dequantize.outputs[0],
            dequantize_weight.outputs[0],
            *([linear.bias] if linear.bias is not None else []),
        ],
        {"transB": 1},
        name=linear.node.name,
    )
    ir.convenience.replace_nodes_and_values(
        model.graph,
        linear.node,
        [linear.node],
        [quantize, dequantize, dequantize_weight, gemm],
        [linear.output],
        [gemm.outputs[0]],
    )
