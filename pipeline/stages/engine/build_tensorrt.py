"""Stage `build-tensorrt`, `build-tensorrt-rtx`: lowered graph, kernels, plan, and the facts of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.build.engine_folder import engine_folder, engine_stage
from kvfold.pipeline.build.tensorrt.architectures import build_settings, why_plan_lacks

if TYPE_CHECKING:
    from kvfold.pipeline.workspace.stage import Job, Stage
    from kvfold.pipeline.workspace.workspace import Workspace


def run(workspace: Workspace, job: Job) -> None:
    """Write model.plan, kernels/, build.log and engine.json; errors as `build_tensorrt_plan`'s."""
    from kvfold.pipeline.build.tensorrt.tensorrt_plan import build_tensorrt_plan

    build_tensorrt_plan(workspace, engine_folder(workspace, job), job.progress)


def stage(target: str) -> Stage:
    """The stage of a target."""
    doing = "compiling kernels and building the plan"
    return engine_stage(target, doing, build_settings, run, __name__, why_plan_lacks)
