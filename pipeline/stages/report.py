"""Stage `report-<target>`: the page that a user reads, and its figures for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.build.engine_folder import FOLDED
from kvfold.pipeline.workspace.stage import Job, Stage, target_stage

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.workspace.workspace import Workspace


def settings(recipe: Recipe) -> object:
    """What the page names, and what is demanded of the figures."""
    return [recipe.name, recipe.validate_on.thresholds.model_dump(mode="json")]


def run(workspace: Workspace, job: Job) -> None:
    """Write results.json and index.html."""
    from kvfold.pipeline.report.write_report import write_report

    write_report(workspace, job.output)


def stage(target: str) -> Stage:
    """The stage of a target."""
    return Stage(
        name=target_stage("report", target),
        doing="writing the report",
        needs=(*FOLDED, target_stage("build", target), target_stage("validate", target)),
        settings=settings,
        files=(f"report/{target}/results.json", f"report/{target}/index.html"),
        run=run,
        modules=(__name__,),
        target=target,
    )
