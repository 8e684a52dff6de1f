"""What keeping pages adds to a step: the same steps of one engine, its tier on and off in turns."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt

# Requests of a block; their lengths differ, so that they end one by one, and are the same in each block.
AT_ONCE, REQUESTS, PROMPT_TOKENS, LEAST_TOKENS, MOST_TOKENS = 8, 96, 96, 16, 48
PLENTY = 1 << 30  # bytes of the cache: nothing is evicted
# Neither comes first more often, and what drifts slowly falls on both alike.
BLOCKS = (True, False, False, True)
ADDED = 5.0  # percent
FLUSH_SECONDS = 60.0


@dataclass(frozen=True)
class StepSeconds:
    """Of a round, all steps with pages kept, and the same steps without; and what was written meanwhile."""

    kept: np.ndarray
    none: np.ndarray
    written: int


def measure_steps(bench: Bench, steps: Steps) -> list[Figure]:
    """Rounds of blocks with one engine; a block before them does not count."""
    with TemporaryDirectory() as folder:
        llm = load(bench, Path(folder) / "kv")
        assert llm.tier is not None
        try:
            run_block(llm, bench.vocab_size, "warm-up")
            rounds = []
            for number in range(bench.rounds):
                rounds.append(
                    _round(llm, bench.vocab_size, number, lambda: steps.next("steps, pages kept or not"))
                )
        finally:
            llm.tier.close()
    return _figures(rounds)


def load(bench: Bench, folder: Path) -> LLM:
    """The bundle's engine over a tier."""
    config = RuntimeConfig(PLENTY, max_num_seqs=AT_ONCE, threads=bench.threads, kv_tier=folder)
    return LLM.load(bench.bundle, config)


def run_block(llm: LLM, vocab_size: int, seed: str) -> list[float]:
    """Seconds of each step of a block; `seed` draws its tokens, and nothing else."""
    lengths, tokens = random.Random("lengths"), np.random.default_rng(list(seed.encode()))
    loop = llm.generator.loop
    for _ in range(REQUESTS):
        length = lengths.randint(LEAST_TOKENS, MOST_TOKENS)
        prompt = Prompt(tokens.integers(0, vocab_size, PROMPT_TOKENS))
        params = SamplingParams(max_tokens=length, min_tokens=length, ignore_eos=True)
        loop.submit(llm.generator.prepare(prompt, params).ticket)
    loop.settle()
    seconds = []
    while loop.core.scheduler.has_work:
        start = perf_counter()
        loop.turn()
        seconds.append(perf_counter() - start)
    return seconds


def _round(llm: LLM, vocab_size: int, number: int, begin: Callable[[], object]) -> StepSeconds:
    memory, tier = llm.generator.loop.core.scheduler.memory, llm.tier
    assert tier is not None
    link, before = memory.link, tier.stats().written
    found: dict[bool, list[list[float]]] = {True: [], False: []}
    for place, keeps in enumerate(BLOCKS):
        begin()
        memory.link = link if keeps else None
        found[keeps].append(run_block(llm, vocab_size, f"{number} {place}"))
        tier.flush(FLUSH_SECONDS)  # what is still queued must not fall into the next block
    memory.link = link
    return StepSeconds(np.array(found[True]), np.array(found[False]), tier.stats().written - before)


def _figures(rounds: list[StepSeconds]) -> list[Figure]:
    count = sum(each.kept.size for each in rounds)
    title = f"a step of {AT_ONCE} streams"
    kept, none = (
        [float(np.percentile(seconds, 99)) for seconds in each]
        for each in ([one.kept for one in rounds], [one.none for one in rounds])
    )
    added = tuple(100 * (a - b) / b for a, b in zip(kept, none, strict=True))
    same = tuple(1e3 * median((one.kept.mean(axis=0) - one.none.mean(axis=0)).tolist()) for one in rounds)
    return [
        Figure(f"{title}, p99, pages kept", "ms", tuple(1e3 * each for each in kept)),
        Figure(f"{title}, p99, no pages kept", "ms", tuple(1e3 * each for each in none)),
        Figure(f"{title}, p99 of {count:,}, what keeping adds", "%", added, Demand("at most", ADDED)),
        Figure(f"{title}, the same step, what keeping adds, median", "ms", same),
        Figure(
            "objects written meanwhile", "", tuple(each.written for each in rounds), Demand("at least", 1)
        ),
    ]
