"""TensorRT-RTX builds plans with the C++ plugin, without the Python plugin in the process.

That a GPU runs the plans is for `make gpu-check`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvfold.plugins.cuda.cuda_library import library_path
from kvfold.plugins.cuda.kernel_library import OPENED_FILE
from kvfold.plugins.tensorrt.attributes import Node
from kvfold.plugins.tensorrt.library_path import environment_for
from tests.plugins.tensorrt.attention_models import CONSUMER, PRODUCER, Model
from tests.plugins.tensorrt.test_build import DECODE, PREFILL, WRONG, profile
from tests.root import ROOT

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed; it would build plans with the C++ plugin"
)


def build(kernels: Path, folder: Path, model: Model, *arguments: str) -> tuple[dict[str, Any], str]:
    """What TensorRT-RTX made of a model, and what was written to stderr."""
    (folder / "model.onnx").write_bytes(model.to_bytes())
    (folder / "profiles.json").write_text(json.dumps([profile(model, DECODE), profile(model, PREFILL)]))
    (folder / "lib").mkdir()
    command = [sys.executable, "-m", "tests.plugins.tensorrt.cpp.cpp_build_worker", str(folder)]
    environment = environment_for("tensorrt_rtx", folder / "lib")
    environment["KVFOLD_KERNELS"] = str(kernels / OPENED_FILE)
    process = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return json.loads((folder / "result.json").read_text()), process.stderr


@pytest.mark.parametrize("nodes", [(PRODUCER,), (PRODUCER, CONSUMER)], ids=["producer", "and consumer"])
def test_plans_are_built_with_it(cpp_kernels: Path, tmp_path: Path, nodes: tuple[Node, ...]) -> None:
    result, stderr = build(cpp_kernels, tmp_path, Model(nodes))
    assert (tmp_path / "model.plan").stat().st_size > 0
    cache = ["INT8", [-1, 32, 2, 64]]
    outputs = {f"output.{index}": ["HALF", [-1, 6 * 64]] for index in range(len(nodes))}
    assert result["outputs"] == outputs | {"key_cache_out": cache, "value_cache_out": cache}
    assert "kvfold: " not in stderr


def test_a_plan_takes_the_library_along(cpp_kernels: Path, tmp_path: Path) -> None:
    build(cpp_kernels, tmp_path, Model(), "serialize")
    assert library_path().read_bytes() in (tmp_path / "model.plan").read_bytes()


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_answered_in_the_python_plugins_words(
    cpp_kernels: Path, tmp_path: Path, case: str
) -> None:
    model, message = WRONG[case]
    result, stderr = build(cpp_kernels, tmp_path, model)
    assert f"kvfold: attention node {PRODUCER.name}: {message}" in stderr
    assert "refused" in result
    assert not (tmp_path / "model.plan").exists()
