"""Replace a file so that a kill at any moment leaves the old one or the new one, whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """`write` to a file beside `path`, flush it to the disk, and rename it into place."""
    aside = path.with_name(path.name + ".aside")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)  # a full disk would stay full
        raise
