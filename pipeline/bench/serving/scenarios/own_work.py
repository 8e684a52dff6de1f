"""What a token costs beside the engine: scheduler, sampling and text, by how it is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.in_process import InProcess, run_in_process
from kvfold.plugins.contract.progress import Progress

AT_ONCE, PROMPT_TOKENS, NEW_TOKENS, WAVES = 16, 20, 256, 2


@dataclass(frozen=True)
class Kind:
    """How tokens are sampled.

    Attributes:
        title: of its figure.
        sampling: fields of SamplingParams.
        limit: microseconds of CPU a token.
    """

    title: str
    sampling: Mapping[str, Any]
    limit: float


KINDS = (
    Kind("greedy", {}, 20.0),
    Kind("temperature 0.8, top-p 0.95", {"temperature": 0.8, "top_p": 0.95, "seed": 1}, 40.0),
    # So hot that most of the vocabulary may come: no row may be a cliff. The bound is our own.
    Kind("temperature 2, top-p 0.95", {"temperature": 2.0, "top_p": 0.95, "seed": 1}, 120.0),
    Kind("greedy, five log probabilities", {"logprobs": 5}, 80.0),
)


async def measure(bench: Bench, progress: Progress) -> Measured:
    """Each kind over an engine that computes nothing, its prompts among the cost."""
    steps = Steps(progress, len(KINDS) * bench.rounds)
    found: dict[str, list[float]] = {kind.title: [] for kind in KINDS}
    for number in range(bench.rounds):
        for kind in KINDS:
            steps.next(kind.title)
            job = _job(bench, kind, number)
            found[kind.title].append(1e6 * run_in_process(job).cpu_seconds / (job.requests * NEW_TOKENS))
    return Measured(
        tuple(
            Figure(
                f"CPU of a token, {AT_ONCE} at once, {kind.title}",
                "µs",
                tuple(found[kind.title]),
                Demand("at most", kind.limit),
            )
            for kind in KINDS
        ),
        {},
    )


def _job(bench: Bench, kind: Kind, number: int) -> InProcess:
    return InProcess(
        bundle=str(bench.bundle),
        zero_cost=True,
        way="generate",
        at_once=AT_ONCE,
        waves=WAVES,
        vocab_size=bench.vocab_size,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
        threads=0,
        seed=f"own {kind.title} {number}",
        sampling=kind.sampling,
    )
