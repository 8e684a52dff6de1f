"""Gemm -> kvfold::Int8Linear, with the weight quantised and packed for the CPU kernel."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from kvfold.export.graph.constants import add_constant
from kvfold.export.graph.linears import Linear, find_linears
from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.int8_linear.packing import pack_weight
from kvfold.plugins.int8_linear.schema import DOMAIN, MAX_IN_FEATURES, OP_TYPE, OPSET, ActivationBits


def apply(model: ir.Model, activation_bits: Mapping[str, ActivationBits]) -> int:
    """Rewrite the linears with these names; raises ExportError for one that is too wide."""
    matches = [linear for linear in find_linears(model) if linear.name in activation_bits]
    for linear in matches:
        _replace(model, linear, activation_bits[linear.name])
    model.opset_imports[DOMAIN] = OPSET
    return len(matches)


def _replace(model: ir.Model, linear: Linear, activation_bits: ActivationBits) -> None:
    out_features, in_features = linear.weight.shape
    if in_features > MAX_IN_FEATURES:
        raise ExportError(
            f"{linear.name} has {in_features} inputs, an int8 linear at most {MAX_IN_FEATURES}; "
            "set linears: none in the recipe's quantize section"
        )
    packed = pack_weight(linear.weight)
    node = ir.node(
        OP_TYPE,
        inputs=[
            linear.x,
            add_constant(model, f"{linear.name}.weight_int8", packed.weight),
            add_constant(model, f"{linear.name}.weight_scale", packed.weight_scale),
            add_constant(model, f"{linear.name}.weight_sum", packed.weight_sum),
            *([linear.bias] if linear.bias is not None else []),
        ],
        attributes={
            "in_features": in_features,
            "out_features": out_features,
            "activation_bits": activation_bits,
        },
        domain=DOMAIN,
        name=f"{linear.name}.{OP_TYPE}",
    )
    ir.convenience.replace_nodes_and_values(
        model.graph, linear.node, [linear.node], [node], [linear.output], [node.outputs[0]]
    )
