"""Memory does not grow with the model: peaks of small models that differ in their number of layers alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
PEAK = """
import sys
from pathlib import Path
import torch
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.fold.fold import fold_weights
from kvfold.export.quantize.calibrate import calibrate
from kvfold.export.weights.layer_journal import LayerJournal
from kvfold.plugins.contract.plan_presets import Preset, build_plan

torch.set_num_threads(1)
checkpoint, preset, work = load_checkpoint(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
config, weights = checkpoint.config, checkpoint.weights
dials = {"preset": preset, "sliding_window": 64, "sink_size": 4, "global_every": 3}
plan = build_plan(Preset.model_validate(dials), config.attention_shape)
tokens = torch.randint(0, 256, (2, 128), generator=torch.Generator().manual_seed(0))


def memory(kind):
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(kind))


before = memory("VmRSS")
folded = fold_weights(config, weights, plan, tokens, journal=LayerJournal(work / "fold", "key", 0))
journal = LayerJournal(work / "int8", "key", 0)
calibrated = calibrate(config, folded.weights, folded.plan, tokens, journal=journal)
assert all(calibrated.weights[name].numel() for name in calibrated.weights)
print(memory("VmHWM") - before)
"""


def peak_bytes(folder: Path, layers: int, preset: str) -> int:
    """What folding and calibrating a model of so many layers takes at most, in a process of its own."""
    checkpoint, work = folder / f"{layers}", folder / f"work-{layers}"
    write_random_checkpoint(checkpoint, {**SHAPES["llama-3.1-8b"], **CHANGES, "num_hidden_layers": layers})
    work.mkdir()
    command = [sys.executable, "-c", PEAK, str(checkpoint), preset, str(work)]
    # What is freed goes back to the system, so that the peak is of what is held.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc; it would be bounded")
@pytest.mark.parametrize("preset", ["horizon", "character"])
def test_six_layers_more_take_less_than_two(tmp_path: Path, preset: str) -> None:
    """`horizon` changes no weight in folding, `character` heads and shares of every layer."""
    small, large = (peak_bytes(tmp_path, layers, preset) for layers in (3, 9))
    assert small > LAYER_BYTES, "a layer is held, so the figure measures something"
    print(small / LAYER_BYTES, large / LAYER_BYTES)
    assert large - small < 2 * LAYER_BYTES
