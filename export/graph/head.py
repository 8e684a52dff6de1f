"""The head of an exported graph: the linear that gives logits, and what caps them (`final_softcap`)."""

from __future__ import annotations

import onnx_ir as ir

from kvfold.plugins.contract.step import LOGITS


def find_head(model: ir.Model) -> ir.Node | None:
    """The Gemm that gives the logits."""
    *_, first = (None, *_from_logits(model))
    return first if first is not None and first.op_type == "Gemm" else None


def capping_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes between the head and the logits, the last one first; none where nothing caps."""
    return [node for node in _from_logits(model) if node.op_type != "Gemm"]


def _from_logits(model: ir.Model) -> list[ir.Node]:
    """From what gives the logits back to the head, through operations of one tensor and constants."""
    nodes: list[ir.Node] = []
    values = [output for output in model.graph.outputs if output.name == LOGITS]
    while values and (node := values[0].producer()) is not None:
        nodes.append(node)
        if node.op_type == "Gemm":
            break
        values = [value for value in node.inputs if value is not None and not value.is_initializer()]
    return nodes
