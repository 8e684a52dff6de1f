"""Programs that the tests of the C++ plugin run."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

COMPILER = os.environ.get("CXX", "g++")


def find_tool(name: str) -> str | None:
    """A program on PATH or of this environment, which is not on PATH unless someone activated it."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


CMAKE = find_tool("cmake")
