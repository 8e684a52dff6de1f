"""kvfold::PagedAttention -> com.microsoft::PagedAttention, the op that ONNX Runtime has for CUDA.

The stock op has no `sink_size`, though it has `head_sink`, and takes everything but the KV scales in the
activation's type.
"""

from __future__ import annotations

import onnx_ir as ir

from kvfold.export.graph.attention import SMALL_INPUTS, find_attention, present_inputs
from kvfold.export.graph.constants import cast_constant
from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.paged_attention.schema import DOMAIN, INPUTS

STOCK_DOMAIN = "com.microsoft"
_SCALES = ("k_scale", "v_scale")


def apply(model: ir.Model, dtype: ir.DataType) -> int:
    """Move every attention node to the stock domain.

    Raises:
        ExportError: a node keeps sink tokens visible, which the stock op cannot.
    """
    matches = 0
    for node in find_attention(model):
        if node.attributes.pop("sink_size").as_int():
            raise ExportError(f"{node.name} has sink tokens, which the stock PagedAttention does not know")
        for name, value in present_inputs(node).items():
            if name in SMALL_INPUTS and name not in _SCALES:
                node.replace_input_with(INPUTS.index(name), cast_constant(model, value, dtype))
        node.domain = STOCK_DOMAIN
        matches += 1
    del model.opset_imports[DOMAIN]
    model.opset_imports[STOCK_DOMAIN] = 1
    return matches
