"""Add + RMSNormalization -> com.microsoft::SkipSimplifiedLayerNormalization: one pass over the stream."""

from __future__ import annotations

import onnx_ir as ir

DOMAIN = "com.microsoft"


def apply(model: ir.Model) -> int:
    """Fuse every residual sum that a norm reads; the sum stays available as the fourth output."""
    matches = 0
    for norm in list(model.graph):
        if norm.op_type != "RMSNormalization" or norm.domain:
            continue
        stream, weight = norm.inputs
        add = stream.producer() if stream is not None else None
        if stream is None or add is None or add.op_type != "Add" or add.domain:
            continue
        fused = ir.node(
            "SkipSimplifiedLayerNormalization",
            inputs=[*add.inputs, weight],
            attributes={"epsilon": norm.attributes["epsilon"].as_float()},
            domain=DOMAIN,
            num_outputs=4,
            name=(norm.name or "").replace("RMSNormalization", "SkipSimplifiedLayerNormalization"),
        )
        fused.outputs[1].name = fused.outputs[2].name = ""
        ir.convenience.replace_nodes_and_values(
            model.graph,
            norm,
            [norm, add],
            [fused],
            [norm.outputs[0], stream],
            [fused.outputs[0], fused.outputs[3]],
        )
        matches += 1
    model.opset_imports[DOMAIN] = 1
    return matches
