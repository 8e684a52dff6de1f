"""Stage `onnx`: the decoder with its paged caches as a graph, for no target yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.plugins.contract.step import DATA_SUFFIX, MODEL_FILE
from kvfold.runtime.bundle import SCALES

if TYPE_CHECKING:
    from kvfold.pipeline.workspace.workspace import Workspace


def run(workspace: Workspace, job: Job) -> None:
    """Write the graph and its data."""
    from kvfold.export.graph.onnx_from_decoder import export_onnx
    from kvfold.export.model.decoder import Decoder

    decoder = Decoder.from_weights(workspace.config, workspace.plan, workspace.weights)
    export_onnx(decoder, workspace.tensors(SCALES), job.output)


STAGE = Stage(
    name="onnx",
    doing="exporting the graph",
    needs=("checkpoint", "fold", "quantize"),
    settings=lambda recipe: None,
    files=(MODEL_FILE, MODEL_FILE + DATA_SUFFIX),
    run=run,
    modules=(__name__,),
)
