"""RMSNormalization -> elementary operations whose squares and mean are float32, written into the graph.

In float16 a square overflows from 256 on, and a residual stream goes higher. ONNX says float32 with
`stash_type` 1, and TensorRT's parser obeys it, but it knows the operation from 10.15 on only; spelled out it
is the same for every version, and TensorRT fuses it into one kernel again.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from kvfold.export.graph.constants import add_constant


def apply(model: ir.Model, dtype: ir.DataType) -> int:
    """Spell out every RMSNormalization over the last axis; `dtype` is what it reads and returns."""
    norms = [node for node in model.graph if node.op_type == "RMSNormalization" and not node.domain]
    for norm in norms:
        nodes = _spell_out(model, norm, dtype)
        ir.convenience.replace_nodes_and_values(
            model.graph, norm, [norm], nodes, [norm.outputs[0]], [nodes[-1].outputs[0]]
        )
    return len(norms)


def _spell_out(model: ir.Model, norm: ir.Node, dtype: ir.DataType) -> list[ir.Node]:
    x, weight = norm.inputs
    path = (norm.name or "").removesuffix(".RMSNormalization")
    epsilon = norm.attributes["epsilon"].as_float()
    nodes: list[ir.Node] = []

    def add(op_type: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        again = sum(node.op_type == op_type for node in nodes)
        name = f"{path}.{op_type}" + (f".{again + 1}" if again else "")
        nodes.append(ir.node(op_type, inputs, attributes, name=name))
        return nodes[-1].outputs[0]

    wide = add("Cast", x, to=ir.DataType.FLOAT.value)
    last_axis = add_constant(model, "last_axis", np.array([-1], dtype=np.int64))
    mean = add("ReduceMean", add("Mul", wide, wide), last_axis)
    shifted = add("Add", mean, add_constant(model, f"epsilon_{epsilon}", np.array(epsilon, dtype=np.float32)))
    narrow = add("Cast", add("Div", wide, add("Sqrt", shifted)), to=dtype.value)
    add("Mul", narrow, weight)
    return nodes
