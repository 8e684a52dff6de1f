"""Stage `validate-<target>`: original, folded model and engine side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.build.engine_folder import FOLDED
from kvfold.pipeline.machine.engine_gpu import gpu_architecture
from kvfold.pipeline.workspace.stage import Job, Stage, target_stage

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.workspace.workspace import Workspace


def settings(recipe: Recipe) -> object:
    """How the text is read, its name, and what reads it; the text itself is another stage's."""
    section = recipe.validate_on
    return [section.prefill_chunk, section.description, gpu_architecture(recipe.target)]


def run(workspace: Workspace, job: Job) -> None:
    """Write measurements.json; errors as `write_measurements`'s."""
    from kvfold.pipeline.quality.validate.validate import write_measurements

    write_measurements(workspace, job.output, job.progress)


def stage(target: str) -> Stage:
    """The stage of a target."""
    return Stage(
        name=target_stage("validate", target),
        doing="comparing original, folded and engine",
        needs=(*FOLDED, target_stage("build", target), "heldout"),
        settings=settings,
        files=(f"report/{target}/measurements.json",),
        run=run,
        modules=(__name__,),
        target=target,
    )
