"""Stage `graph`: the decoder with its paged caches as a graph, for no target yet and without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.pipeline.workspace.workspace import GRAPH
from kvfold.runtime.bundle import SCALES

if TYPE_CHECKING:
    from kvfold.pipeline.workspace.workspace import Workspace


def run(workspace: Workspace, job: Job) -> None:
    """Write the graph."""
    from kvfold.export.graph.onnx_from_decoder import export_graph

    path = job.output / GRAPH
    path.parent.mkdir()
    export_graph(workspace.config, workspace.plan, workspace.tensors(SCALES), path, job.progress)


STAGE = Stage(
    name="graph",
    doing="tracing the graph",
    needs=("checkpoint", "fold", "quantize"),
    settings=lambda recipe: None,
    files=(GRAPH,),
    run=run,
    modules=(__name__,),
)
