"""Training on disk: snapshots to go on from as if nothing had happened, and the log of losses."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvfold.export.heal.training.schedule import Clock
from kvfold.export.weights.layer_journal import save_state
from kvfold.plugins.contract.write_aside import write_aside

SNAPSHOT = "snapshot.pt"
START = "start.pt"
LOSSES = "loss.jsonl"
# What reading a damaged file, or none, raises.
_UNREADABLE = (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Snapshot:
    """The state of training between two updates.

    Attributes:
        key: of everything that decides the result; another key's snapshot is of no use.
        step: name of the step at work.
        form: the model as its adapter's tensors.
        updates: how many the step has made.
        optimizer: its state; None before a step's first update.
        int8: the fields of the `Int8Deployment` that step int8 found at its start; None before that.
        spent: seconds on the clock.
        spans: of a training by the clock, from when to when on it each step trains; None before that is
            decided.
    """

    key: str
    step: str
    form: Mapping[str, Tensor]
    updates: int = 0
    optimizer: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None
    spent: float = 0.0
    spans: dict[str, tuple[float, float]] | None = None

    def then(self, step: str) -> Snapshot:
        """Where the next step begins."""
        return replace(self, step=step, updates=0, optimizer=None)


class Journal:
    """One training's folder; of another training's, nothing is kept.

    Attributes:
        clock: how long the training has worked; a snapshot keeps it.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        self.clock = Clock()

    def load(self) -> Snapshot | None:
        """This training's snapshot; None where there is none, or none that can be read."""
        try:
            snapshot = Snapshot(**torch.load(self.folder / SNAPSHOT, map_location="cpu", weights_only=True))
        except _UNREADABLE:
            return None
        if snapshot.key != self.key:
            return None
        self.clock = Clock(snapshot.spent)
        return snapshot

    def begin(self, step: str, form: Mapping[str, Tensor]) -> Snapshot:
        """Empty the folder and start with a step's first snapshot."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / LOSSES).touch()
        return self.save(Snapshot(self.key, step, form))

    def save(self, snapshot: Snapshot) -> Snapshot:
        """Write a snapshot, so that a kill leaves the old one or the new one; its form is on the CPU."""
        form = {name: tensor.detach().cpu() for name, tensor in snapshot.form.items()}
        snapshot = replace(snapshot, form=form, spent=self.clock.spent)
        save_state(self.folder / SNAPSHOT, vars(snapshot))
        return snapshot

    def keep_start(self, form: Mapping[str, Tensor]) -> None:
        """Write what training begins with, for the case that it makes it worse."""
        save_state(self.folder / START, form)

    def start(self) -> dict[str, Tensor] | None:
        """What `keep_start` wrote; None where it cannot be read any more."""
        try:
            form: dict[str, Tensor] = torch.load(self.folder / START, map_location="cpu", weights_only=True)
        except _UNREADABLE:
            return None
        return form

    def log(self, step: str, update: int, loss: float, rate: float = 0.0) -> None:
        """Append an update's loss (layerwise: relative squared error; others: nat) and learning rate."""
        with (self.folder / LOSSES).open("a") as file:
            file.write(json.dumps({"step": step, "update": update, "loss": loss, "rate": rate}) + "\n")

    def last_loss(self, step: str) -> float:
        """The last that was logged of a step that made an update."""
        lines = map(json.loads, (self.folder / LOSSES).read_text().splitlines())
        losses: list[float] = [line["loss"] for line in lines if line["step"] == step]
        return losses[-1]

    def rewind(self, snapshot: Snapshot, steps: Sequence[str]) -> None:
        """Take out of the log what a kill left beyond the snapshot: it will be written again."""
        reached = (steps.index(snapshot.step), snapshot.updates)
        lines = (self.folder / LOSSES).read_text().splitlines(keepends=True)
        whole = [(line, json.loads(line)) for line in lines if line.endswith("}\n")]
        kept = [line for line, x in whole if (steps.index(x["step"]), x["update"]) <= reached]
        write_aside(self.folder / LOSSES, lambda path: path.write_text("".join(kept)))
