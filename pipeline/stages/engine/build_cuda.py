"""Stage `build-cuda`: the graph lowered for ONNX Runtime's CUDA provider, and the facts of it.

Nothing is compiled, so no GPU is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.build.bound_graph import bound_graph
from kvfold.pipeline.build.engine_facts import engine_config
from kvfold.pipeline.build.engine_folder import engine_folder, engine_stage

if TYPE_CHECKING:
    from kvfold.pipeline.workspace.stage import Job, Stage
    from kvfold.pipeline.workspace.workspace import Workspace
    from kvfold.plugins.cuda.attention_spec import ActivationDtype


def run(workspace: Workspace, job: Job) -> None:
    """Write model.onnx, its data and engine.json.

    Activations are bfloat16 where the plan stores a cache so, else float16.

    Raises:
        ExportError: a graph pass did not find what it must, or a weight is beyond the activations' type.
        TargetError: the plan has sink tokens, or caches of a type that the stock op does not read.
    """
    from kvfold.export.graph.lower_cuda import lower_for_cuda

    plan, directory = workspace.plan, engine_folder(workspace, job)
    stores_bfloat16 = any(bank.kv_dtype == "bfloat16" for bank in plan.banks)
    dtype: ActivationDtype = "bfloat16" if stores_bfloat16 else "float16"
    passes = lower_for_cuda(bound_graph(workspace), directory, plan, dtype, job.progress)
    engine_config(workspace, "cuda", passes).save(directory)


def stage(target: str) -> Stage:
    """The stage of a target."""
    return engine_stage(target, "building the engine", lambda recipe: None, run, __name__)
