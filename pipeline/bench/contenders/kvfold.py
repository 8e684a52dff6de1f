"""kvfold's own runtime on one of the bundle's engines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.bench.contenders.contender import CacheLoad, Generation, Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvfold.plugins.contract.fold_plan import FoldPlan
    from kvfold.runtime.llm.llm import LLM
    from kvfold.runtime.memory.paged_sequence import PagedSequence
    from kvfold.runtime.runtime_config import RuntimeConfig

TITLE = "kvfold"
WEIGHTS = "int8"
PACKAGE = "kvfold"
INSTALL = "pip install kvfold"


def prepare(source: Path, target: Path) -> None:
    """A bundle is made by `kvfold build`, never from the peers' folder."""
    raise NotImplementedError("kvfold runs from a bundle; run `kvfold build RECIPE`")


def load(model: Path, limits: Limits) -> KvfoldContender:
    """Load a bundle with pools for twice what is in use at once, as OpenVINO GenAI gets."""
    from kvfold.runtime.bundle import open_bundle
    from kvfold.runtime.engine.engine_files import open_engine
    from kvfold.runtime.llm.llm import LLM

    files = open_engine(open_bundle(model), limits.target)
    config = runtime_config(files.plan, files.slab_pages, limits, files.config.max_context_length)
    return KvfoldContender(LLM.load(model, config, limits.target))


def runtime_config(
    plan: FoldPlan, slabs: Mapping[str, int], limits: Limits, max_context_length: int
) -> RuntimeConfig:
    """Bytes of twice `pages_in_use`, in slabs of so many pages of each group."""
    from kvfold.runtime.engine.slabs import bytes_of_slabs
    from kvfold.runtime.runtime_config import RuntimeConfig

    config = RuntimeConfig(max_num_seqs=limits.sequences, threads=limits.threads)
    chunk = min(config.max_num_batched_tokens, max_context_length)
    twice = {name: 2 * count for name, count in pages_in_use(plan, limits, chunk).items()}
    return replace(config, kv_cache_bytes=bytes_of_slabs(plan, twice, slabs))


def pages_in_use(plan: FoldPlan, limits: Limits, chunk: int) -> dict[str, int]:
    """Most pages of each group that any load holds, at `chunk` tokens a step; a whole step at least.

    The scheduler keeps a page in reserve for each running sequence, or it would admit the next one later.
    """
    from kvfold.runtime.memory.horizon import horizons

    loads = (CacheLoad(1, chunk), *limits.cache_loads)
    return {
        law.name: max(load.sequences * (law.peak_pages(load.length, chunk) + 1) for load in loads)
        for law in horizons(plan)
    }


class KvfoldContender:
    """Runs the loop's turns itself, so that every token's arrival is known; turns go on as a Session's do."""

    def __init__(self, llm: LLM) -> None:
        self._generator = llm.generator
        self._kept: PagedSequence | None = None

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generation:
        """See `Contender.generate`; a single prompt's sequence is kept for the next call."""
        import numpy as np

        from kvfold.runtime.loop.commands import Discard
        from kvfold.runtime.loop.ticket import Service
        from kvfold.runtime.sampling.params import SamplingParams
        from kvfold.runtime.scheduler.request import Prompt

        loop, single = self._generator.loop, len(prompts) == 1
        params, service = SamplingParams(max_tokens=new_tokens, ignore_eos=True), Service(keep=single)
        if self._kept is not None and not single:
            loop.post(Discard(self._kept))
        kept = self._kept if single else None
        started = time.perf_counter()
        requests = []
        for prompt in prompts:
            read = Prompt(np.array(prompt, np.int64), kept=kept)
            ticket = self._generator.prepare(read, params, service).ticket
            loop.submit(ticket)
            requests.append(ticket.request)
        arrivals: list[list[float]] = [[] for _ in prompts]
        while not all(request.finish_reason for request in requests):
            loop.turn()
            clock = time.perf_counter()
            for times, request in zip(arrivals, requests, strict=True):
                times += [clock] * (request.num_completion_tokens - len(times))
        self._kept = requests[0].sequence if single else None
        return Generation(started, [request.completion_ids for request in requests], arrivals)
