"""The workspace's graph with its weights, none of which is read before it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.workspace.workspace import GRAPH, Workspace

if TYPE_CHECKING:
    import onnx_ir as ir


def bound_graph(workspace: Workspace) -> ir.Model:
    """The target-neutral graph; its stages up to `graph` are done."""
    from kvfold.export.graph.graph_weights import load_graph

    return load_graph(workspace.root / GRAPH, workspace.plan, workspace.weights)
