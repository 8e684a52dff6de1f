"""Peaks of processes over small random models that differ in their number of layers alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kvfold.pipeline.bench.models.random_checkpoint import SHAPES, write_random_checkpoint
from tests.root import ROOT

# A layer has 4.6 million weights, 18 MB in float32; between 3 layers and 9 lie 110 MB of them.
CHANGES = {
    "hidden_size": 512,
    "intermediate_size": 2_560,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 320,
    "max_position_embeddings": 512,
}
LAYER_BYTES = 4 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 2_560)
BEGIN = """
import sys
from pathlib import Path
import torch
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint

torch.set_num_threads(1)
checkpoint, work, arguments = load_checkpoint(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
config, weights = checkpoint.config, checkpoint.weights
tokens = torch.randint(0, 256, (2, 128), generator=torch.Generator().manual_seed(0))


def memory(kind):
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(kind))

"""
MEASURE = """
before = memory("VmRSS")
work_on_it()
print(memory("VmHWM") - before)
"""


def peak_bytes(folder: Path, layers: int, code: str, *arguments: str) -> int:
    """What `work_on_it`, which `code` defines, takes at most over a model of so many layers."""
    checkpoint, work = folder / f"{layers}", folder / f"work-{layers}"
    write_random_checkpoint(checkpoint, {**SHAPES["llama-3.1-8b"], **CHANGES, "num_hidden_layers": layers})
    work.mkdir()
    command = [sys.executable, "-c", BEGIN + code + MEASURE, str(checkpoint), str(work), *arguments]
    # What is freed goes back to the system, so that the peak is of what is held.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def check_growth(folder: Path, code: str, *arguments: str) -> None:
    """Six layers more must take less than two."""
    small, large = (peak_bytes(folder, layers, code, *arguments) for layers in (3, 9))
    assert small > LAYER_BYTES, "a layer is held, so the figure measures something"
    print(small / LAYER_BYTES, large / LAYER_BYTES)
    assert large - small < 2 * LAYER_BYTES
