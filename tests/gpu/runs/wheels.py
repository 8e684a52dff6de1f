"""Packages that are only wheels in a folder, for a machine without a registry."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile


def use_wheels(folder: Path, target: Path) -> list[str]:
    """Unpack the wheels of packages that are not installed, for this process and those that it starts.

    Args:
        folder: with wheels; dependencies are what it holds.
        target: an existing folder.

    Returns:
        The packages, by name.
    """
    taken = []
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.partition("-")[0]
        if not _is_installed(name):
            with ZipFile(wheel) as archive:
                archive.extractall(target)
            taken.append(name)
    sys.path.append(str(target))
    paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(target)]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return taken


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
