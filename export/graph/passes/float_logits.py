"""Logits in float32, whatever the activations are: the step contract of every target.

What caps them is computed in float32 too: near a cap, float16 has few numbers.
"""

from __future__ import annotations

import onnx_ir as ir

from kvfold.export.graph.head import capping_nodes, find_head
from kvfold.plugins.contract.step import LOGITS


def apply(model: ir.Model) -> int:
    """Put a cast behind the head; where it gives the logits, its result takes over their name."""
    head = find_head(model)
    if head is None:
        return 0
    narrow = head.outputs[0]
    readers = capping_nodes(model)
    cast = ir.node("Cast", [narrow], {"to": ir.DataType.FLOAT.value}, name=f"{LOGITS}.Cast")
    wide = cast.outputs[0]
    wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), narrow.shape
    model.graph.insert_after(head, cast)
    if not readers:
        narrow.name, wide.name = f"{LOGITS}.{narrow.dtype}", LOGITS
        model.graph.outputs[model.graph.outputs.index(narrow)] = wide
    for node, index in tuple(narrow.uses()):
        if node in readers:
            node.replace_input_with(index, wide)
    return 1
