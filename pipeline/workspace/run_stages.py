"""Bring a bundle up to date with a recipe: run what changed, skip the rest, survive being killed."""

from __future__ import annotations

import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvfold.pipeline.machine.extras import EXPORT, require_extra
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.workspace.stage import Job, Stage, dependents, hash_stage, requirements
from kvfold.pipeline.workspace.tool_versions import tool_versions
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.pipeline.workspace.write_bundle import BundleWriter, name_disk_errors, open_writer, record_files
from kvfold.plugins.contract.progress import Progress
from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.bundle import Manifest, StageRecord, read_manifest


class Display(Protocol):
    """Shows a user what the stages do."""

    def skipped(self, stage: Stage) -> None:
        """A stage is up to date."""
        ...

    def running(
        self, stage: Stage, place: str, why: str, last_time: float | None
    ) -> AbstractContextManager[Progress]:
        """A stage runs, `place` of how many, until the context ends; it tells how far it is.

        `last_time` is how many seconds it took when it ran before, None where that is not known.
        """
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
    chosen = _chosen(recipe, stages, until)
    with open_writer(root) as writer:
        workspace = Workspace(recipe, root)
        return [
            _run_stage(stage, f"{number} of {len(chosen)}", writer, workspace, display, stages)
            for number, stage in enumerate(chosen, start=1)
        ]


def pending_stages(
    recipe: Recipe, root: Path, stages: tuple[Stage, ...], until: str | None = None
) -> list[tuple[Stage, float | None]]:
    """The stages that `run_stages` would run, or may: those that are not up to date, and their readers.

    Each with the seconds that it took when it ran before, None where that is not known. Nothing is written.

    Raises:
        BundleError: the bundle's manifest is damaged.
    """
    writer = BundleWriter(root, read_manifest(root) or Manifest(kvfold_version=VERSION))
    found: dict[str, Stage] = {}
    for stage in _chosen(recipe, stages, until):
        reads_new = not found.keys().isdisjoint(stage.needs)
        if reads_new or _why_run(stage, hash_stage(stage, recipe, writer.manifest), writer, recipe):
            found[stage.name] = stage
    return [(stage, writer.manifest.seconds.get(name)) for name, stage in found.items()]


def _chosen(recipe: Recipe, stages: tuple[Stage, ...], until: str | None) -> list[Stage]:
    """The stages of the recipe's target that are needed for `until`."""
    wanted = {stage.name for stage in stages} if until is None else {until, *requirements(until, stages)}
    return [s for s in stages if s.name in wanted and s.target in (None, recipe.target)]


def _run_stage(
    stage: Stage,
    place: str,
    writer: BundleWriter,
    workspace: Workspace,
    display: Display,
    stages: tuple[Stage, ...],
) -> StageOutcome:
    with name_disk_errors(writer.root):
        stage_hash = hash_stage(stage, workspace.recipe, writer.manifest)
        why = _why_run(stage, stage_hash, writer, workspace.recipe)
    if why is None:
        _discard(writer.root, stage)  # a kill between commit and this left it
        display.skipped(stage)
        return StageOutcome(stage.name, ran=False, seconds=0.0)
    require_extra(EXPORT)
    start = time.perf_counter()
    last_time = writer.manifest.seconds.get(stage.name)
    with display.running(stage, place, why, last_time) as progress, name_disk_errors(writer.root):
        output = writer.staging(stage.name)
        stage.run(workspace, Job(output, progress, stage_hash))
        progress(1.0, "hashing what it wrote")
        files = record_files(output)
        foreign = [name for name in files if not stage.writes(name)]
        assert not foreign, f"stage {stage.name} wrote {foreign}, which it does not declare"
        seconds = time.perf_counter() - start
        record = StageRecord(hash=stage_hash, files=files, seconds=seconds)
        folders = [name for name in stage.files if name.endswith("/")]
        writer.commit(stage.name, record, dependents(stage.name, stages), tool_versions(), folders)
        _discard(writer.root, stage)
    return StageOutcome(stage.name, ran=True, seconds=seconds)


def _why_run(stage: Stage, stage_hash: str, writer: BundleWriter, recipe: Recipe) -> str | None:
    """Why a stage must run; None when what it wrote is there, still right, and does for this machine."""
    return writer.why_stale(stage.name, stage_hash) or stage.why_lacking(recipe, writer.root)


def _discard(root: Path, stage: Stage) -> None:
    """Remove what a stage kept in case that it is killed."""
    if stage.scratch is not None:
        shutil.rmtree(root / stage.scratch, ignore_errors=True)
