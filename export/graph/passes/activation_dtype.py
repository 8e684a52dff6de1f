"""float32 -> float16 or bfloat16: activations and weights.

What a node reads in float32 on a GPU stays so: scales of Q/DQ and the small constants of attention. With
float32 scales TensorRT quantises in float32, and int8 GEMMs return float32, are scaled and then rounded. With
float16 scales its log shows GEMMs that return float16 before they are scaled: integer sums exceed its range.
What caps the logits stays float32 as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from kvfold.export.graph.attention import SMALL_INPUTS
from kvfold.export.graph.constants import cast_constant
from kvfold.export.graph.head import capping_nodes
from kvfold.plugins.paged_attention.schema import DOMAIN, INPUTS, OP_TYPE

_FLOAT32_INPUTS = {
    ("", "QuantizeLinear"): {1},
    ("", "DequantizeLinear"): {1},
    (DOMAIN, OP_TYPE): {INPUTS.index(name) for name in SMALL_INPUTS},
}


def apply(model: ir.Model, dtype: ir.DataType) -> int:
    """Convert the graph and count the inputs of nodes that now read a weight in `dtype`."""
    matches, capping = 0, capping_nodes(model)
    for value in list(model.graph.initializers.values()):
        if value.dtype != ir.DataType.FLOAT:
            continue
        for node, index in _converted_uses(value, capping):
            node.replace_input_with(index, cast_constant(model, value, dtype))
            matches += 1
    for node in model.graph:
        if node in capping:
            continue
        if node.op_type == "DequantizeLinear":
            node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", dtype.value)
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = dtype
    return matches


def _converted_uses(value: ir.Value, capping: Collection[ir.Node]) -> Iterator[tuple[ir.Node, int]]:
    """Where a constant is read, but for inputs that stay float32; one constant may have both kinds."""
    for node, index in tuple(value.uses()):
        if node not in capping and index not in _FLOAT32_INPUTS.get((node.domain, node.op_type), ()):
            yield node, index
