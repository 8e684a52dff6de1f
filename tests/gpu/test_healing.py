"""Healing on the GPU: the losses of all its steps beside the CPU's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvfold.export.heal.heal import heal
from kvfold.plugins.contract.progress import unheard
from tests.export.heal.tiny_healing import SETTINGS, TOKENS, tiny_healing
from tests.gpu.conftest import RecordProperty


@pytest.mark.usefixtures("gpu")
def test_losses_are_the_cpu_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: RecordProperty
) -> None:
    """Training layer by layer, end to end and in int8 goes as on the CPU, in float32 on both."""
    monkeypatch.setattr("kvfold.export.heal.student.student.matmul_dtype", lambda _: torch.float32)
    settings = SETTINGS.model_copy(update={"int8_tokens": 3 * TOKENS.numel()})
    losses = {}
    for kind in ("cpu", "cuda"):
        monkeypatch.setattr(
            "kvfold.export.heal.student.student.training_device", lambda kind=kind: torch.device(kind)
        )
        healing, folded = tiny_healing(settings)
        heal(healing, folded, tmp_path / kind, "key", unheard)
        lines = (tmp_path / kind / "loss.jsonl").read_text().splitlines()
        losses[kind] = torch.tensor([json.loads(line)["loss"] for line in lines])
    difference = ((losses["cuda"] - losses["cpu"]).abs() / losses["cpu"]).max()
    record_property("largest relative difference of a loss", float(difference))
    assert difference < 0.02
