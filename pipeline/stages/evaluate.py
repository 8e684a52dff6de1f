"""Stage `evaluate-<target>`: what the fold costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.build.engine_folder import FOLDED
from kvfold.pipeline.machine.engine_gpu import gpu_architecture
from kvfold.pipeline.recipe.evaluate_section import SHIPPED_PASSAGES
from kvfold.pipeline.workspace.stage import Job, Stage, target_stage
from kvfold.runtime.bundle import hash_file

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.workspace.workspace import Workspace


def settings(recipe: Recipe) -> object:
    """What is measured, the passages by content, and on which GPU; its text is another stage's."""
    section = recipe.evaluate
    shipped = section.last_words == SHIPPED_PASSAGES
    passages = None if shipped else [Path(section.last_words).name, hash_file(Path(section.last_words))]
    others = section.model_dump(mode="json", exclude={"source", "last_words"})
    gpu = gpu_architecture(recipe.target)
    return [others, section.description, passages, recipe.validate_on.prefill_chunk, gpu]


def run(workspace: Workspace, job: Job) -> None:
    """Write evaluation.json; errors as `write_evaluation`'s."""
    from kvfold.pipeline.quality.evaluate.evaluate import write_evaluation

    write_evaluation(workspace, job.output, job.progress)


def stage(target: str) -> Stage:
    """The stage of a target."""
    return Stage(
        name=target_stage("evaluate", target),
        doing="measuring what the fold costs",
        needs=(*FOLDED, target_stage("build", target), "evaltext"),
        settings=settings,
        files=(f"report/{target}/evaluation.json",),
        run=run,
        modules=(__name__,),
        target=target,
    )
