"""PagedAttention in the form of the op for ONNX Runtime's CUDA provider (plugins/cuda/onnxruntime).

A consumer writes nothing, so it is given no keys, values and slots. Every node names its scratch as a fourth
output and takes the one of the node before as the input after the schema's: a tensor that nothing reads would
stay allocated to the end of a step.
"""

from __future__ import annotations

import onnx_ir as ir

from kvfold.export.graph.attention import find_attention
from kvfold.plugins.paged_attention.schema import INPUTS, OUTPUTS

KERNELS_ATTRIBUTE = "kernels"
_WRITTEN = ("key", "value", "slot_mapping")


def apply(model: ir.Model) -> int:
    """Rewrite every attention node; `name_kernels` says later which kernels it was built with."""
    matches, scratch = 0, None
    for node in find_attention(model):
        inputs = [*node.inputs, *[None] * (len(INPUTS) - len(node.inputs)), scratch]
        writes = len(node.outputs) == len(OUTPUTS)
        for name in () if writes else _WRITTEN:
            inputs[INPUTS.index(name)] = None
        new = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(OUTPUTS) + 1,
            name=node.name,
        )
        for output, name in zip(new.outputs, OUTPUTS, strict=False):
            output.name = None if writes or name == OUTPUTS[0] else ""
        scratch = new.outputs[-1]
        scratch.name, scratch.type = f"{node.name}.scratch", ir.TensorType(ir.DataType.UINT8)
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [new], node.outputs, new.outputs[: len(node.outputs)]
        )
        matches += 1
    return matches


def name_kernels(model: ir.Model, sha256: str) -> None:
    """Have every attention node ask for the kernels of this sha256."""
    for node in find_attention(model):
        node.attributes[KERNELS_ATTRIBUTE] = ir.AttrString(KERNELS_ATTRIBUTE, sha256)
