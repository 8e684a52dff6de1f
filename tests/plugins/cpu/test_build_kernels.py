"""setup.py without a compiler: the message names what was tried and what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.root import ROOT


def test_a_missing_compiler_is_explained(tmp_path: Path) -> None:
    folders = ["--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path / "lib")]
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", *folders],
        cwd=ROOT,
        env=os.environ | {"CC": "/nonexistent", "CXX": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "libkvfold_cpu.so did not compile: " in result.stderr and "'/nonexistent'" in result.stderr
    for advice in ("C++17 compiler", "apt-get install g++", "dnf install gcc-c++", "xcode-select --install"):
        assert advice in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("*.so"))
