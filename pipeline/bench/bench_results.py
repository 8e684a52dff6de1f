"""What a bench run found: every raw sample, the machine, and who was skipped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from kvfold.pipeline.bench.describe_machine import Machine
from kvfold.pipeline.bench.workloads.workloads import Metric


@dataclass
class ContenderResult:
    """One row of the table.

    Attributes:
        title: name in the table.
        weights: how it stores the weights.
        version: of its package.
        samples: values of every round by metric key, in the metrics' units.
        failure: why it has no samples, or not from every round; empty when it ran.
    """

    title: str
    weights: str
    version: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    failure: str = ""

    def add(self, values: dict[str, float]) -> None:
        """Take in one round."""
        for key, value in values.items():
            self.samples.setdefault(key, []).append(value)

    def median(self, key: str) -> float | None:
        """Median over the rounds; None where the metric was not measured."""
        values = self.samples.get(key)
        return median(values) if values else None


@dataclass(frozen=True)
class BenchResult:
    """One run.

    Attributes:
        command: what was typed.
        machine: where, and how busy it was.
        threads: compute threads of every contender.
        rounds: fresh processes, and so samples, of each contender.
        plan: what kvfold's engine runs, while its peers run the model unfolded.
        metrics: the columns.
        contenders: the rows; kvfold is the first.
        skipped: peers that did not run and workloads that do not fit the model, with the reason.
    """

    command: str
    machine: Machine
    threads: int
    rounds: int
    plan: str
    metrics: Sequence[Metric]
    contenders: Sequence[ContenderResult]
    skipped: Sequence[str]

    def save(self, path: Path) -> None:
        """Write everything as JSON, raw samples included."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    def best(self, metric: Metric) -> float | None:
        """The best median of any contender."""
        medians = (contender.median(metric.key) for contender in self.contenders)
        values = [value for value in medians if value is not None]
        if not values:
            return None
        return max(values) if metric.unit == "tokens/s" else min(values)
