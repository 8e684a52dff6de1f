"""`plugin_abi.h` against TensorRT's own headers; `test_cpp_runtime` also calls the plugin through those."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.plugins.cuda.cpp.compile_cpp import compile_cpp
from tests.plugins.tensorrt.conftest import CUDA_TYPES

FACTS = Path(__file__).with_name("abi_facts.cc")


def facts(folder: Path, *options: str | Path) -> list[str]:
    """What the program prints that is compiled with these options."""
    program = compile_cpp(folder / "facts", "-Wno-invalid-offsetof", *options, FACTS)
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


def test_sizes_values_and_places_are_those_of_tensorrts_headers(headers: Path, tmp_path: Path) -> None:
    own = facts(tmp_path, "-DKVFOLD_OWN")
    theirs = facts(tmp_path, "-isystem", CUDA_TYPES, "-isystem", headers)
    assert own == theirs
    assert "IPluginV3OneRuntime::enqueue 49 0" in own  # the seventh function
