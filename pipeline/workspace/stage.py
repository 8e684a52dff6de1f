"""A stage as data: its name, what decides its result, and the function that writes its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.workspace.sources import hash_sources
from kvfold.pipeline.workspace.workspace import Workspace  # what a stage is handed is of its sources
from kvfold.plugins.contract.version import VERSION

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.plugins.contract.progress import Progress
    from kvfold.runtime.bundle import Manifest


@dataclass(frozen=True)
class Job:
    """One run of a stage.

    Attributes:
        output: an empty folder; the stage writes its files there, by their paths in the bundle.
        progress: told of the fraction done.
        key: the stage's hash; what it keeps elsewhere while it works is good for this key alone.
    """

    output: Path
    progress: Progress
    key: str


def lacks_nothing(recipe: Recipe, root: Path) -> str | None:
    """The `why_lacking` of a stage whose files are good for every machine."""
    return None


@dataclass(frozen=True)
class Stage:
    """One step from a recipe to a bundle.

    Attributes:
        name: how the manifest and the progress display call it.
        doing: what it does, for the progress display: "folding heads and layers".
        needs: stages whose files it reads.
        settings: the part of the recipe that decides its result, with fingerprints of outside files.
        files: what it may write, by paths in the bundle; a folder, with all below it, ends in "/".
        run: writes them.
        modules: dotted names of the modules that it runs; a change of what they are made from runs it again.
        target: it runs for recipes of this target only; None for all.
        scratch: folder of the bundle, outside its manifest, of what it keeps while it works; it goes once its
            files are committed.
        why_lacking: why its files in the bundle do not do here, though they are made of the same; None when
            they do. So an engine runs on each GPU that it has kernels for, whichever machine built it.
    """

    name: str
    doing: str
    needs: tuple[str, ...]
    settings: Callable[[Recipe], object]
    files: tuple[str, ...]
    run: Callable[[Workspace, Job], None]
    modules: tuple[str, ...]
    target: str | None = None
    scratch: str | None = None
    why_lacking: Callable[[Recipe, Path], str | None] = lacks_nothing

    def writes(self, name: str) -> bool:
        """Whether a path in the bundle is one of its files."""
        return any(name.startswith(file) if file.endswith("/") else name == file for file in self.files)


def target_stage(kind: str, target: str) -> str:
    """Name of a target's own stage: `build-cpu`; the kinds are build, validate, evaluate and report."""
    return f"{kind}-{target}"


def hash_stage(stage: Stage, recipe: Recipe, manifest: Manifest) -> str:
    """Hash of everything that decides a stage's result; its needs must be in the manifest.

    Inputs count by content, not by how they were made: a stage that runs again and writes the same
    bytes leaves the later ones unchanged.
    """
    inputs = {
        need: {name: record.sha256 for name, record in manifest.stages[need].files.items()}
        for need in stage.needs
    }
    parts = [stage.name, VERSION, stage.settings(recipe), hash_sources(stage.modules), inputs]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def dependents(name: str, stages: tuple[Stage, ...]) -> set[str]:
    """The stages that read what `name` writes, directly or through others."""
    found: set[str] = set()
    for stage in stages:
        if name in stage.needs or found.intersection(stage.needs):
            found.add(stage.name)
    return found


def requirements(name: str, stages: tuple[Stage, ...]) -> set[str]:
    """The stages whose files `name` reads, directly or through others."""
    found = {name}
    for stage in reversed(stages):
        if stage.name in found:
            found.update(stage.needs)
    return found - {name}
