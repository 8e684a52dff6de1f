"""Sigmoid + Mul -> com.microsoft::QuickGelu with an alpha of 1, which is silu: one pass over the gate.

A SwiGLU is then Split, QuickGelu, Mul. ONNX Runtime has an op for the three (SwiGLU), but its CUDA provider
has no kernel for it in 1.31, and BiasSplitGelu is another activation. QuickGelu rounds as the two nodes do.
"""

from __future__ import annotations

import onnx_ir as ir

DOMAIN = "com.microsoft"


def apply(model: ir.Model) -> int:
    """Fuse every x * sigmoid(x) whose sigmoid nobody else reads."""
    matches = 0
    for sigmoid in list(model.graph):
        if sigmoid.op_type != "Sigmoid" or sigmoid.domain:
            continue
        x, users = sigmoid.inputs[0], list(sigmoid.outputs[0].uses())
        product = users[0].node if len(users) == 1 else None
        if product is None or product.op_type != "Mul" or set(product.inputs) != {x, sigmoid.outputs[0]}:
            continue
        name = (product.name or "").replace("Mul", "QuickGelu")
        fused = ir.node("QuickGelu", inputs=[x], attributes={"alpha": 1.0}, domain=DOMAIN, name=name)
        ir.convenience.replace_nodes_and_values(
            model.graph, product, [sigmoid, product], [fused], [product.outputs[0]], [fused.outputs[0]]
        )
        matches += 1
    model.opset_imports[DOMAIN] = 1
    return matches
