"""Split, Sigmoid, Mul, Mul in front of an Int8Linear or Int4Linear -> its `input_activation` "swiglu".

With a Gelu in the place of Sigmoid and Mul it is "geglu". The float product [T, intermediate] is then never
written: the linear activates while it quantises.
"""

from __future__ import annotations

import onnx_ir as ir

from kvfold.plugins.int4_linear.schema import OP_TYPE as INT4
from kvfold.plugins.int8_linear.schema import DOMAIN, InputActivation
from kvfold.plugins.int8_linear.schema import OP_TYPE as INT8


def apply(model: ir.Model) -> int:
    """Fuse every activation(gate) * up whose halves come from one packed projection."""
    matches = 0
    for node in list(model.graph):
        if node.domain != DOMAIN or node.op_type not in (INT8, INT4):
            continue
        found = _gated_projection(node.inputs[0])
        if found is not None:
            activation, packed = found
            node.replace_input_with(0, packed)
            node.attributes["input_activation"] = ir.AttrString("input_activation", activation)
            matches += 1
    return matches


def _gated_projection(x: ir.Value | None) -> tuple[InputActivation, ir.Value] | None:
    """The activation and the [T, 2 * n] value behind x = activation(gate) * up, or None for another x."""
    product = _producer(x, "Mul")
    if product is None:
        return None
    activated, up = product.inputs
    gates: dict[InputActivation, ir.Value | None] = {
        "swiglu": _gate_of_silu(activated),
        "geglu": _gate_of_gelu(activated),
    }
    for activation, gate in gates.items():
        split = _producer(gate, "Split")
        if split is not None and split.inputs[0] is not None and list(split.outputs) == [gate, up]:
            return activation, split.inputs[0]
    return None


def _gate_of_silu(activated: ir.Value | None) -> ir.Value | None:
    """gate of gate * sigmoid(gate)."""
    swish = _producer(activated, "Mul")
    if swish is None:
        return None
    gate, sigmoid = swish.inputs
    activation = _producer(sigmoid, "Sigmoid")
    return gate if activation is not None and activation.inputs[0] is gate else None


def _gate_of_gelu(activated: ir.Value | None) -> ir.Value | None:
    """gate of gelu(gate), approximated by tanh."""
    gelu = _producer(activated, "Gelu")
    approximate = None if gelu is None else gelu.attributes.get("approximate")
    if gelu is None or approximate is None or approximate.as_string() != "tanh":
        return None
    return gelu.inputs[0]


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None
