"""`plugin_abi.h` against TensorRT's own headers; `test_cpp_runtime` also calls the plugin through those."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.plugins.tensorrt.conftest import CUDA_TYPES, PLUGINS, run
from tests.plugins.tensorrt.cpp.compilers import COMPILER

FACTS = Path(__file__).with_name("abi_facts.cc")


def facts(folder: Path, *options: str) -> list[str]:
    """What the program prints that is compiled with these options."""
    program = folder / "facts"
    run([COMPILER, "-std=c++17", "-Wno-invalid-offsetof", *options, str(FACTS), "-o", str(program)])
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


def test_sizes_values_and_places_are_those_of_tensorrts_headers(headers: Path, tmp_path: Path) -> None:
    own = facts(tmp_path, "-DKVFOLD_OWN", f"-I{PLUGINS}")
    theirs = facts(tmp_path, "-isystem", str(CUDA_TYPES), "-isystem", str(headers))
    assert own == theirs
    assert "IPluginV3OneRuntime::enqueue 49 0" in own  # the seventh function
