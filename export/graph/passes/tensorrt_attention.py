"""PagedAttention in the form of `plugins.tensorrt.node_form`: no absent inputs, and a list of those it has.

A consumer writes nothing, so it is given no keys, values and slots.
"""

from __future__ import annotations

import onnx_ir as ir

from kvfold.export.graph.attention import find_attention, present_inputs
from kvfold.plugins.paged_attention.schema import OUTPUTS
from kvfold.plugins.tensorrt.node_form import INPUTS_ATTRIBUTE, SLOTS

_WRITTEN = ("key", "value", SLOTS)


def apply(model: ir.Model) -> int:
    """Rewrite every attention node."""
    matches = 0
    for node in find_attention(model):
        writes = len(node.outputs) == len(OUTPUTS)
        inputs = {
            name: value for name, value in present_inputs(node).items() if writes or name not in _WRITTEN
        }
        listed = ir.AttrString(INPUTS_ATTRIBUTE, ",".join(inputs))
        new = ir.Node(
            node.domain,
            node.op_type,
            list(inputs.values()),
            [*node.attributes.values(), listed],
            num_outputs=len(node.outputs),
            name=node.name,
        )
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], node.outputs, new.outputs)
        matches += 1
    return matches
