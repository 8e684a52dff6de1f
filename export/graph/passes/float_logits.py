"""Logits in float32, whatever the activations are: the step contract of every target."""

from __future__ import annotations

import onnx_ir as ir

from kvfold.plugins.contract.step import LOGITS


def apply(model: ir.Model) -> int:
    """Put a cast behind the head; its result takes over the graph output's name."""
    matches = 0
    for index, logits in enumerate(model.graph.outputs):
        head = logits.producer()
        if logits.name != LOGITS or head is None:
            continue
        logits.name = f"{LOGITS}.{logits.dtype}"
        cast = ir.node("Cast", [logits], {"to": ir.DataType.FLOAT.value}, name=f"{LOGITS}.Cast")
        cast.outputs[0].name = LOGITS
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        cast.outputs[0].shape = logits.shape
        model.graph.insert_after(head, cast)
        model.graph.outputs[index] = cast.outputs[0]
        matches += 1
    return matches
