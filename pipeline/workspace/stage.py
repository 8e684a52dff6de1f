"""A stage as data: its name, what decides its result, and the function that writes its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.show.progress import Progress
from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.bundle import Manifest

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.workspace.workspace import Workspace

SOURCE_ROOT = Path(__file__).parents[2]
SOURCE_SUFFIXES = (".py", ".cc", ".h", ".j2", ".txt")


@dataclass(frozen=True)
class Stage:
    """One step from a recipe to a bundle.

    Attributes:
        name: how the manifest and the progress display call it.
        doing: what it does, for the progress display: "folding heads and layers".
        needs: stages whose files it reads.
        settings: the part of the recipe that decides its result, with fingerprints of outside files.
        code: source files or folders, from the source root, whose change must run it again.
        run: writes the stage's files into `output`, by their paths in the bundle; it may call
            `progress(fraction)`.
        target: it runs for recipes of this target only; None for all.
    """

    name: str
    doing: str
    needs: tuple[str, ...]
    settings: Callable[[Recipe], object]
    code: tuple[str, ...]
    run: Callable[[Workspace, Path, Progress], None]
    target: str | None = None


def hash_stage(stage: Stage, recipe: Recipe, manifest: Manifest) -> str:
    """Hash of everything that decides a stage's result; its needs must be in the manifest.

    Inputs count by content, not by how they were made: a stage that runs again and writes the same
    bytes leaves the later ones unchanged.
    """
    inputs = {
        need: {name: record.sha256 for name, record in manifest.stages[need].files.items()}
        for need in stage.needs
    }
    parts = [stage.name, VERSION, stage.settings(recipe), hash_code(stage.code), inputs]
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


@cache
def hash_code(code: tuple[str, ...]) -> str:
    """Hash of source files, so that a changed kvfold never skips a stage it would do differently."""
    digest = hashlib.sha256()
    for entry in code:
        path = SOURCE_ROOT / entry
        files = (
            [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SOURCE_SUFFIXES)
        )
        assert files, f"stage code {entry} does not exist"
        for file in files:
            digest.update(str(file.relative_to(SOURCE_ROOT)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
