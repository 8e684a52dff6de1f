"""Jobs for a worker process and its answers, as they travel between two Pythons: JSON both ways."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from kvfold.pipeline.bench.contenders.contender import CacheLoad, Limits


@dataclass(frozen=True)
class Probe:
    """Say which version of the contender's package is installed."""

    contender: str


@dataclass(frozen=True)
class Prepare:
    """Convert the Hugging Face folder `source` into the existing folder `target`."""

    contender: str
    source: str
    target: str


@dataclass(frozen=True)
class Measure:
    """Load a model, warm up, and run every workload of a set once that the model's context holds.

    Attributes:
        workloads: a name in `pipeline.bench.workloads.workloads.SETS`.
        context_length: tokens that a sequence of this model may have.
        vocab_size: prompts are written from ids below it.
        seed: makes prompts that no other job has.
    """

    workloads: str
    context_length: int
    vocab_size: int
    limits: Limits
    seed: str
    contender: str
    model: str


Job = Probe | Prepare | Measure
KINDS: dict[str, type[Probe] | type[Prepare] | type[Measure]] = {
    kind.__name__: kind for kind in (Probe, Prepare, Measure)
}


@dataclass(frozen=True)
class Answer:
    """What a job gave.

    Attributes:
        version: of the contender's package; None where it is not installed.
        values: samples by metric key; of Measure only.
    """

    version: str | None
    values: dict[str, float]


def write_job(job: Job) -> str:
    """One line of JSON."""
    return json.dumps({"kind": type(job).__name__, "fields": dataclasses.asdict(job)})


def read_job(text: str) -> Job:
    """The job of a line that `write_job` wrote."""
    content = json.loads(text)
    fields = content["fields"]
    if "limits" in fields:
        limits = fields["limits"]
        loads = tuple(CacheLoad(**load) for load in limits["cache_loads"])
        fields["limits"] = Limits(limits["threads"], loads, limits["target"])
    job: Job = KINDS[content["kind"]](**fields)
    return job


def write_answer(answer: Answer, path: Path) -> None:
    """Into a file: standard output belongs to the engines, which print what they like."""
    path.write_text(json.dumps(dataclasses.asdict(answer)), encoding="utf-8")


def read_answer(path: Path) -> Answer:
    """The answer in a file that `write_answer` wrote."""
    return Answer(**json.loads(path.read_text(encoding="utf-8")))
