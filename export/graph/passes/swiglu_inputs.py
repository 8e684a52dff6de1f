"""Split, Sigmoid, Mul, Mul in front of an Int8Linear or Int4Linear -> its `input_activation` "swiglu".

The float product [T, intermediate] is then never written: the linear activates while it quantises.
"""

from __future__ import annotations

import onnx_ir as ir

from kvfold.plugins.int4_linear.schema import OP_TYPE as INT4
from kvfold.plugins.int8_linear.schema import DOMAIN
from kvfold.plugins.int8_linear.schema import OP_TYPE as INT8


def apply(model: ir.Model) -> int:
    """Fuse every silu(gate) * up whose halves come from one packed projection."""
    matches = 0
    for node in list(model.graph):
        if node.domain != DOMAIN or node.op_type not in (INT8, INT4):
            continue
        packed = _packed_projection(node.inputs[0])
        if packed is not None:
            node.replace_input_with(0, packed)
            node.attributes["input_activation"] = ir.AttrString("input_activation", "swiglu")
            matches += 1
    return matches


def _packed_projection(x: ir.Value | None) -> ir.Value | None:
    """The [T, 2 * n] value behind x = (gate * sigmoid(gate)) * up, or None where x is something else."""
    product = _producer(x, "Mul")
    if product is None:
        return None
    silu, up = product.inputs
    swish = _producer(silu, "Mul")
    if swish is None:
        return None
    gate, sigmoid = swish.inputs
    activation = _producer(sigmoid, "Sigmoid")
    split = _producer(gate, "Split")
    if activation is None or split is None or activation.inputs[0] is not gate:
        return None
    return split.inputs[0] if list(split.outputs) == [gate, up] else None


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None
