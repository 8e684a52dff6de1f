"""Memory that tracing and lowering take beside weights that are read: it does not grow with the layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.root import ROOT

FEW, MANY = 2, 14
LAYER_BYTES = 4 * (4 * 512 * 512 + 3 * 512 * 2048)  # float32


def measure(kind: str, layers: int, directory: Path) -> int:
    """Bytes by which a process's largest resident memory grows while it exports and lowers a model."""
    directory.mkdir()
    worker = [
        sys.executable,
        "-m",
        "tests.export.graph.build_memory_worker",
        kind,
        str(layers),
        str(directory),
    ]
    result = subprocess.run(worker, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    return int(json.loads(result.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="would show that memory does not grow with the model")
@pytest.mark.parametrize("kind", ["cpu", "cuda", "tensorrt", "onnx"])
def test_memory_does_not_grow_with_the_layers(kind: str, tmp_path: Path) -> None:
    few = measure(kind, FEW, tmp_path / "few")
    many = measure(kind, MANY, tmp_path / "many")
    # A traced layer's nodes take 1 to 3 MiB. Its weights would take LAYER_BYTES, or half of it as float16.
    assert many - few < (MANY - FEW) * LAYER_BYTES / 4
