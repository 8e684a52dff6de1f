"""Compiles what the tests have in C++."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.root import ROOT


def compile_cpp(target: Path, *arguments: str | Path) -> Path:
    """A program or library of sources that include by the names that the house uses, and from the root.

    Args:
        target: the file to make.
        arguments: sources, and options of the compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, "-std=c++17", f"-I{ROOT / 'plugins'}", f"-I{ROOT}", "-o", target, *arguments, "-ldl"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return target
