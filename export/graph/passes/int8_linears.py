"""Gemm -> kvfold::Int8Linear, with the weight quantised and packed for the CPU kernel."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from export.graph.linears import Linear, add_constant, find_linears
from plugins.int8_linear.packing import pack_weight
from plugins.int8_linear.schema import DOMAIN, OP_TYPE, OPSET


def apply(model: ir.Model, names: Collection[str]) -> int:
    """Rewrite the linears with these names."""
    matches = [linear for linear in find_linears(model) if linear.name in names]
    for linear in matches:
        _replace(model, linear)
    model.opset_imports[DOMAIN] = OPSET
    return len(matches)


def _replace(model: ir.Model, linear: Linear) -> None:
    packed = pack_weight(linear.weight)
    out_features, in_features = linear.weight.shape
    node = ir.node(
        OP_TYPE,
        inputs=[
            linear.x,
            add_constant(model, f"{linear.name}.weight_int8", packed.weight),
            add_constant(model, f"{linear.name}.weight_scale", packed.weight_scale),
            add_constant(model, f"{linear.name}.weight_sum", packed.weight_sum),
            *([linear.bias] if linear.bias is not None else []),
        ],
        attributes={"in_features": in_features, "out_features": out_features},
        domain=DOMAIN,
        name=f"{linear.name}.{OP_TYPE}",
    )
    ir.convenience.replace_nodes_and_values(
        model.graph, linear.node, [linear.node], [node], [linear.output], [node.outputs[0]]
    )
