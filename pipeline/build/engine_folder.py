"""What the stages that build an engine have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.workspace.stage import Job, Stage, lacks_nothing, target_stage

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.workspace.workspace import Workspace

# What an engine is built from, and what is later held against it.
FOLDED = ("checkpoint", "fold", "quantize")


def engine_stage(
    target: str,
    doing: str,
    settings: Callable[[Recipe], object],
    run: Callable[[Workspace, Job], None],
    module: str,
    why_lacking: Callable[[Recipe, Path], str | None] = lacks_nothing,
) -> Stage:
    """The stage that writes `engine/<target>/`; arguments as of Stage, `module` is its own."""
    return Stage(
        name=target_stage("build", target),
        doing=doing,
        needs=(*FOLDED, "graph"),
        settings=settings,
        files=(f"engine/{target}/",),
        run=run,
        modules=(module,),
        target=target,
        why_lacking=why_lacking,
    )


def engine_folder(workspace: Workspace, job: Job) -> Path:
    """The engine's folder, made for a job to write into."""
    directory = job.output / "engine" / workspace.recipe.target
    directory.mkdir(parents=True)
    return directory
