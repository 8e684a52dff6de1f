"""Split in front of a producer that shares its cache -> packed QKV again.

The exporter splits the projection so that consumers can be given keys and values. A target whose consumers
read the cache alone needs no split, and the kernels address packed QKV in place.
"""

from __future__ import annotations

import onnx_ir as ir

from kvfold.export.graph.attention import find_attention
from kvfold.plugins.paged_attention.schema import INPUTS, OUTPUTS

_QKV = ("query", "key", "value")


def apply(model: ir.Model) -> int:
    """Give every producer whose query, key and value are one split projection the whole of it."""
    matches = 0
    for node in find_attention(model):
        parts = [node.inputs[INPUTS.index(name)] for name in _QKV]
        split = parts[0].producer() if parts[0] is not None else None
        if len(node.outputs) != len(OUTPUTS) or split is None or split.op_type != "Split":
            continue
        if list(split.outputs) == parts:
            for name, value in zip(_QKV, (split.inputs[0], None, None), strict=True):
                node.replace_input_with(INPUTS.index(name), value)
            matches += 1
    return matches
