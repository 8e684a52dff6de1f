"""Stage `onnx`: the graph with its weights, for other tools; no engine is made from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.build.bound_graph import bound_graph
from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.plugins.contract.progress import part
from kvfold.plugins.contract.step import DATA_SUFFIX, MODEL_FILE

if TYPE_CHECKING:
    from kvfold.pipeline.workspace.workspace import Workspace


def run(workspace: Workspace, job: Job) -> None:
    """Write the graph and its data."""
    from kvfold.export.graph.model_files import save_model
    from kvfold.export.graph.passes import exact_storage

    model = bound_graph(workspace)
    exact_storage.apply(model, part(job.progress, 0, 0.5, "choosing types"))
    save_model(model, job.output / MODEL_FILE, part(job.progress, 0.5, 0.5))


STAGE = Stage(
    name="onnx",
    doing="writing the graph's weights",
    needs=("checkpoint", "fold", "quantize", "graph"),
    settings=lambda recipe: None,
    files=(MODEL_FILE, MODEL_FILE + DATA_SUFFIX),
    run=run,
    modules=(__name__,),
)
