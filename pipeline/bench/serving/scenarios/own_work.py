"""What a token costs beside the engine: scheduler, sampling and text; and a step, without sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.in_process import InProcess, run_in_process
from kvfold.pipeline.bench.trace.drive_scheduler import Drive, Script
from kvfold.plugins.contract.progress import Progress
from kvfold.runtime.bundle import open_bundle
from kvfold.runtime.engine.engine_files import open_engine
from kvfold.runtime.llm.llm import DEFAULT_TARGET
from kvfold.runtime.runtime_config import RuntimeConfig

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


@dataclass(frozen=True)
class StepKind:
    """Steps of the scheduler, its memory and the packing of inputs, with nothing computed or sampled.

    Attributes:
        title: of its figure.
        which: the steps that count: those with tokens of prompts in them, or the others.
        at_once: requests that run at once.
        requests: in all.
        prompt_tokens: of each, no prefix shared.
        new_tokens: of each reply.
        limit: microseconds of CPU a step.
    """

    title: str
    which: Literal["reading", "decoding"]
    at_once: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    limit: float


STEP_KINDS = (
    StepKind("prompts of 8 requests stream through", "reading", 8, 400, 832, 20, 400.0),
    StepKind("64 requests decode", "decoding", 64, 128, PROMPT_TOKENS, NEW_TOKENS, 600.0),
)


async def measure(bench: Bench, progress: Progress) -> Measured:
    """Each kind over an engine that computes nothing, its prompts among the cost."""
    steps = Steps(progress, (len(KINDS) + len(STEP_KINDS)) * bench.rounds)
    found: dict[str, list[float]] = {kind.title: [] for kind in (*KINDS, *STEP_KINDS)}
    for number in range(bench.rounds):
        for kind in KINDS:
            steps.next(kind.title)
            job = _job(bench, kind, number)
            found[kind.title].append(1e6 * run_in_process(job).cpu_seconds / (job.requests * NEW_TOKENS))
        for step_kind in STEP_KINDS:
            steps.next(step_kind.title)
            found[step_kind.title].append(_step_microseconds(bench, step_kind))
    figures = [
        (f"CPU of a token, {AT_ONCE} at once, {kind.title}", kind.title, kind.limit) for kind in KINDS
    ] + [(f"CPU of a step without sampling, {kind.title}", kind.title, kind.limit) for kind in STEP_KINDS]
    return Measured(
        tuple(
            Figure(title, "µs", tuple(found[key]), Demand("at most", limit)) for title, key, limit in figures
        )
    )


def _step_microseconds(bench: Bench, kind: StepKind) -> float:
    files = open_engine(open_bundle(bench.bundle), DEFAULT_TARGET)
    length = kind.prompt_tokens + kind.new_tokens
    config = RuntimeConfig(max_num_seqs=kind.at_once)
    drive = Drive(files.plan, config, kind.requests * length, files.config.max_context_length)
    texts = np.arange(kind.requests * length).reshape(kind.requests, length)
    drive.run(Script(text[: kind.prompt_tokens], text[kind.prompt_tokens :]) for text in texts)
    cost = drive.reading if kind.which == "reading" else drive.decoding
    return cost.microseconds


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
