"""Training on disk: snapshots to go on from as if nothing had happened, and the log of losses."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvfold.export.weights.layer_journal import save_state
from kvfold.plugins.contract.write_aside import write_aside

SNAPSHOT = "snapshot.pt"
LOSSES = "loss.jsonl"


@dataclass(frozen=True)
class Snapshot:
    """The state of training between two updates.

    Attributes:
        key: of everything that decides the result; another key's snapshot is of no use.
        step: name of the step at work.
        updates: how many it has made.
        form: the model as its adapter's tensors.
        optimizer: its state; None before a step's first update.
        int8: the fields of the `Int8Deployment` that step int8 found at its start; None before that.
    """

    key: str
    step: str
    updates: int
    form: Mapping[str, Tensor]
    optimizer: dict[str, Any] | None
    int8: dict[str, Any] | None = None


class Journal:
    """One training's folder; of another training's, nothing is kept."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    def load(self) -> Snapshot | None:
        """This training's snapshot; None where there is none, or none that can be read."""
        try:
            snapshot = Snapshot(**torch.load(self.folder / SNAPSHOT, map_location="cpu", weights_only=True))
        except (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError):
            return None
        return snapshot if snapshot.key == self.key else None

    def begin(self, step: str, form: Mapping[str, Tensor]) -> Snapshot:
        """Empty the folder and start with a step's first snapshot."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / LOSSES).touch()
        return self.save(step, 0, form, None)

    def save(
        self,
        step: str,
        updates: int,
        form: Mapping[str, Tensor],
        optimizer: dict[str, Any] | None,
        int8: dict[str, Any] | None = None,
    ) -> Snapshot:
        """Write a snapshot, so that a kill leaves the old one or the new one; its form is on the CPU."""
        values = {name: tensor.detach().cpu() for name, tensor in form.items()}
        snapshot = Snapshot(self.key, step, updates, values, optimizer, int8)
        save_state(self.folder / SNAPSHOT, vars(snapshot))
        return snapshot

    def log(self, step: str, update: int, loss: float, rate: float) -> None:
        """Append an update's loss (layerwise: relative squared error; others: nat) and learning rate."""
        with (self.folder / LOSSES).open("a") as file:
            file.write(json.dumps({"step": step, "update": update, "loss": loss, "rate": rate}) + "\n")

    def rewind(self, snapshot: Snapshot, steps: Sequence[str]) -> None:
        """Take out of the log what a kill left beyond the snapshot: it will be written again."""
        reached = (steps.index(snapshot.step), snapshot.updates)
        lines = (self.folder / LOSSES).read_text().splitlines(keepends=True)
        whole = [(line, json.loads(line)) for line in lines if line.endswith("}\n")]
        kept = [line for line, x in whole if (steps.index(x["step"]), x["update"]) <= reached]
        write_aside(self.folder / LOSSES, lambda path: path.write_text("".join(kept)))
