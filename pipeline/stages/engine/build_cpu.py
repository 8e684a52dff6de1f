"""Stage `build-cpu`: the graph lowered for ONNX Runtime on the CPU with our kernels, and the facts of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.build.bound_graph import bound_graph
from kvfold.pipeline.build.engine_facts import engine_config
from kvfold.pipeline.build.engine_folder import engine_folder, engine_stage

if TYPE_CHECKING:
    from kvfold.pipeline.workspace.stage import Job, Stage
    from kvfold.pipeline.workspace.workspace import Workspace


def run(workspace: Workspace, job: Job) -> None:
    """Write model.onnx, its data and engine.json.

    Raises:
        ExportError: a graph pass did not find what it must.
        TargetError: the plan stores a cache in a type that the CPU kernels do not read.
    """
    from kvfold.export.graph.lower_cpu import lower_for_cpu

    directory, precision = engine_folder(workspace, job), workspace.quantization.precision
    blocks = workspace.int4_blocks
    passes = lower_for_cpu(bound_graph(workspace), directory, workspace.plan, precision, blocks, job.progress)
    engine_config(workspace, "cpu", passes).save(directory)


def stage(target: str) -> Stage:
    """The stage of a target."""
    return engine_stage(target, "building the engine", lambda recipe: None, run, __name__)
