"""kvfold's own runtime on the bundle's CPU engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.bench.contenders.contender import Generation, Limits

if TYPE_CHECKING:
    from kvfold.plugins.contract.fold_plan import FoldPlan
    from kvfold.runtime.llm import LLM
    from kvfold.runtime.memory.paged_sequence import PagedSequence
    from kvfold.runtime.runtime_config import RuntimeConfig
    from kvfold.runtime.scheduler.request import Prompt

TITLE = "kvfold"
WEIGHTS = "int8"
PACKAGE = "kvfold"
INSTALL = "pip install kvfold"


def prepare(source: Path, target: Path) -> None:
    """A bundle is made by `kvfold build`, never from the peers' folder."""
    raise NotImplementedError("kvfold runs from a bundle; run `kvfold build RECIPE`")


def load(model: Path, limits: Limits) -> KvfoldContender:
    """Load a bundle with pools for twice the tokens in use at once, as OpenVINO GenAI gets."""
    from kvfold.runtime.bundle import open_bundle
    from kvfold.runtime.llm import LLM

    return KvfoldContender(LLM.load(model, runtime_config(open_bundle(model).plan, limits)))


def runtime_config(plan: FoldPlan, limits: Limits) -> RuntimeConfig:
    """Bytes of twice the tokens in use at once, with what a step's chunk takes of small windows."""
    from kvfold.runtime.memory.budget import pages_of_sequence
    from kvfold.runtime.runtime_config import RuntimeConfig

    config = RuntimeConfig(max_num_seqs=limits.sequences, threads=limits.threads)
    pages = pages_of_sequence(plan, limits.cache_tokens, config.max_num_batched_tokens)
    budget = 2 * sum(pages[group.name] * group.page_bytes(plan.page_size) for group in plan.groups)
    return replace(config, kv_cache_bytes=budget)


class KvfoldContender:
    """Steps the scheduler itself, so that every token's arrival is known; turns go on as a Session's do."""

    def __init__(self, llm: LLM) -> None:
        self._generator = llm.generator
        self._kept: PagedSequence | None = None

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generation:
        """See `Contender.generate`; a single prompt's sequence is kept for the next call."""
        from kvfold.runtime.sampling.params import SamplingParams

        params = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        single = len(prompts) == 1
        started = time.perf_counter()
        replies = [self._generator.prepare(self._continue(prompt), params, keep=single) for prompt in prompts]
        for reply in replies:
            self._generator.scheduler.submit(reply.request)
        arrivals: list[list[float]] = [[] for _ in prompts]
        while not all(reply.finished for reply in replies):
            self._generator.scheduler.step()
            clock = time.perf_counter()
            for times, reply in zip(arrivals, replies, strict=True):
                times += [clock] * (len(reply.request.completion_ids) - len(times))
        if single:
            self._kept = replies[0].request.sequence
        return Generation(started, [reply.request.completion_ids for reply in replies], arrivals)

    def _continue(self, prompt: Sequence[int]) -> Prompt:
        """Go on from the kept sequence where the prompt begins with exactly its tokens, else give it back."""
        import numpy as np

        from kvfold.runtime.scheduler.request import Prompt

        tokens = np.array(prompt, np.int64)
        kept, self._kept = self._kept, None
        if kept is None:
            return Prompt(tokens)
        cached = kept.tokens[: kept.num_computed]
        if len(cached) < len(tokens) and np.array_equal(tokens[: len(cached)], cached) and not kept.released:
            return Prompt(tokens, kept=kept)
        self._generator.scheduler.discard(kept)
        return Prompt(tokens)
