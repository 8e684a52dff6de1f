"""Bring a bundle up to date with a recipe: run what changed, skip the rest, survive being killed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvfold.pipeline.machine.extras import EXPORT, require_extra
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.show.progress import Progress
from kvfold.pipeline.workspace.stage import Job, Stage, dependents, hash_stage, requirements
from kvfold.pipeline.workspace.tool_versions import tool_versions
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.pipeline.workspace.write_bundle import (
    BundleWriter,
    name_disk_errors,
    open_writer,
    record_files,
    why_stale,
)
from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.bundle import StageRecord, read_manifest


class Display(Protocol):
    """Shows a user what the stages do."""

    def skipped(self, stage: Stage) -> None:
        """A stage is up to date."""
        ...

    def started(self, stage: Stage, why: str, expected_seconds: float | None) -> Progress:
        """A stage begins; returns the function that it reports its fraction done to."""
        ...

    def finished(self, stage: Stage, seconds: float) -> None:
        """A stage is recorded."""
        ...


@dataclass(frozen=True)
class StageOutcome:
    """What became of one stage: whether it ran, and for how long in seconds."""

    name: str
    ran: bool
    seconds: float


def run_stages(
    recipe: Recipe, root: Path, stages: tuple[Stage, ...], display: Display, until: str | None = None
) -> list[StageOutcome]:
    """Run the stages that are not up to date, in order.

    Args:
        recipe: what to make.
        root: the bundle's folder.
        stages: all stages, each after those it needs; those of another target than the recipe's rest.
        display: told of progress.
        until: the stage to bring up to date, with all that it needs; None is all.

    Raises:
        BundleError: the bundle cannot be written (the path is named), or another process writes it.
        MissingExtraError: a stage must run, and what builds bundles is not installed.
        KvfoldError: whatever a stage raises; what finished before it stays recorded.
    """
    wanted = {stage.name for stage in stages} if until is None else {until, *requirements(until, stages)}
    with open_writer(root) as writer:
        workspace = Workspace(recipe, root)
        return [
            _run_stage(stage, writer, workspace, display, dependents(stage.name, stages))
            for stage in stages
            if stage.name in wanted and stage.target in (None, recipe.target)
        ]


def is_up_to_date(stage: Stage, workspace: Workspace) -> bool:
    """Whether a stage that needs no other would be skipped; nothing is written, and no lock is asked for."""
    assert not stage.needs, "its inputs would have to be up to date too"
    try:
        manifest = read_manifest(workspace.root)
    except BundleError:  # whoever writes the bundle will say so
        return False
    if manifest is None or manifest.kvfold_version != VERSION:
        return False
    stage_hash = hash_stage(stage, workspace.recipe, manifest)
    return why_stale(workspace.root, manifest.stages.get(stage.name), stage_hash) is None


def _run_stage(
    stage: Stage, writer: BundleWriter, workspace: Workspace, display: Display, forget: set[str]
) -> StageOutcome:
    with name_disk_errors(writer.root):
        stage_hash = hash_stage(stage, workspace.recipe, writer.manifest)
    why = writer.why_stale(stage.name, stage_hash)
    if why is None:
        display.skipped(stage)
        return StageOutcome(stage.name, ran=False, seconds=0.0)
    require_extra(EXPORT)
    progress = display.started(stage, why, writer.manifest.seconds.get(stage.name))
    start = time.perf_counter()
    with name_disk_errors(writer.root):
        output = writer.staging(stage.name)
        stage.run(workspace, Job(output, progress, stage_hash))
        files = record_files(output)
        foreign = [name for name in files if not stage.writes(name)]
        assert not foreign, f"stage {stage.name} wrote {foreign}, which it does not declare"
        seconds = time.perf_counter() - start
        record = StageRecord(hash=stage_hash, files=files, seconds=seconds)
        writer.commit(stage.name, record, forget, tool_versions())
    display.finished(stage, seconds)
    return StageOutcome(stage.name, ran=True, seconds=seconds)
