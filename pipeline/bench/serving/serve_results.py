"""What a run against servers found: figures beside what is demanded of them, and the loads they came from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from kvfold.pipeline.bench.describe_machine import Machine
from kvfold.pipeline.bench.serving.client.load_summary import LoadSummary


@dataclass(frozen=True)
class Demand:
    """What a figure must keep."""

    side: Literal["at most", "at least"]
    limit: float

    def is_met(self, value: float) -> bool:
        """Whether a value keeps it."""
        return value <= self.limit if self.side == "at most" else value >= self.limit


@dataclass(frozen=True)
class Figure:
    """One thing that was measured.

    Attributes:
        title: what it is.
        unit: of its samples.
        samples: one a round, or one.
        demand: what it must keep; None for what is only told.
    """

    title: str
    unit: str
    samples: tuple[float, ...]
    demand: Demand | None = None

    @property
    def value(self) -> float:
        """Median of the rounds."""
        return median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether it keeps its demand; None where there is none."""
        return None if self.demand is None else self.demand.is_met(self.value)


@dataclass(frozen=True)
class Measured:
    """What a scenario found.

    Attributes:
        figures: in the table's order.
        loads: of each server, a summary a round.
        notes: what a reader of the figures must know.
    """

    figures: tuple[Figure, ...]
    loads: Mapping[str, tuple[LoadSummary, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServeResult:
    """One run.

    Attributes:
        command: what was typed.
        machine: where, and how busy it was.
        subjects: the bundles, and their peer with its version.
        measured: by scenario.
    """

    command: str
    machine: Machine
    subjects: tuple[str, ...]
    measured: Mapping[str, Measured]

    def save(self, path: Path) -> None:
        """Write everything as JSON, every round's figures included."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @property
    def missed(self) -> tuple[Figure, ...]:
        """Figures that do not keep their demand."""
        return tuple(f for found in self.measured.values() for f in found.figures if f.met is False)
