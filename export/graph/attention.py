"""Find the attention nodes of an exported graph, and their inputs by schema name."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from kvfold.plugins.paged_attention.schema import DOMAIN, INPUTS, OP_TYPE

# Small constants: float32 wherever the target leaves the choice, as they decide what lands in the cache.
SMALL_INPUTS = (
    "cos_cache",
    "sin_cache",
    "head_sink",
    "q_norm_weight",
    "k_norm_weight",
    "k_scale",
    "v_scale",
)


def find_attention(model: ir.Model) -> Iterator[ir.Node]:
    """Every attention node in kvfold's domain, in order."""
    for node in list(model.graph):
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
            yield node


def present_inputs(node: ir.Node) -> dict[str, ir.Value]:
    """The inputs that the node has, by schema name and in the schema's order."""
    pairs = zip(INPUTS, node.inputs, strict=False)
    return {name: value for name, value in pairs if value is not None}
