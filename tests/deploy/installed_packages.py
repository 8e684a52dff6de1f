"""Where the packages of the tests' own environment lie, for environments that have fewer."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from packaging.requirements import Requirement


def package_paths(requirements: list[str]) -> dict[str, Path]:
    """Files and folders of the required distributions, and of those that they require, by their names.

    A link to each, in one folder, makes an environment without a package registry.
    """
    paths: dict[str, Path] = {}
    for name in closure(requirements):
        distribution = importlib.metadata.distribution(name)
        roots = {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__", "bin"}
        paths |= {root: Path(str(distribution.locate_file(root))) for root in roots}
    return paths


def closure(requirements: list[str]) -> set[str]:
    """Distributions that are required, and those that they require, without extras."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        needed = Requirement(waiting.pop())
        if needed.name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            found.add(needed.name)
            waiting += importlib.metadata.requires(needed.name) or ()
    return found
