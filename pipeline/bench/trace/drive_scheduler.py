"""Requests through the real scheduler and memory, in steps that nobody computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import thread_time

import numpy as np

from kvfold.pipeline.bench.no_pages import NoPages
from kvfold.plugins.contract.errors import CapacityError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.engine.slabs import UNITS, address_pages, slab_pages
from kvfold.runtime.memory.budget import kv_cache_bytes
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.scheduler.request import Prompt, Request
from kvfold.runtime.scheduler.scheduler import Scheduler
from kvfold.runtime.scheduler.step_builder import StepBuilder


@dataclass(frozen=True)
class Script:
    """What a request reads, and the reply that it will have.

    Attributes:
        prompt: int64, token ids.
        reply: int64; empty where the prompt is read only.
    """

    prompt: np.ndarray
    reply: np.ndarray


@dataclass
class StepCost:
    """What steps took of the scheduler, its memory and the packing of inputs, without an engine or sampling.

    Attributes:
        steps: how many.
        cpu_seconds: of the thread that ran them.
    """

    steps: int = 0
    cpu_seconds: float = 0.0

    @property
    def microseconds(self) -> float:
        """Of a step, on average; 0 where there was none."""
        return 1e6 * self.cpu_seconds / self.steps if self.steps else 0.0


class Drive:
    """A scheduler that is driven as the engine's loop does it; what is sampled stands in the scripts.

    Attributes:
        scheduler: its metrics tell what was found.
        reading: steps with tokens of prompts in them.
        decoding: the others.
        refused: requests that could never run.
        refused_tokens: of their prompts.
    """

    def __init__(
        self,
        plan: FoldPlan,
        config: RuntimeConfig,
        vocab_size: int,
        context_length: int,
        tier: KvTier | None = None,
    ) -> None:
        """Nothing runs yet; raises CapacityError where the bytes hold no step."""
        self.scheduler, self._info = _make_scheduler(plan, config, vocab_size, context_length, tier)
        self.reading, self.decoding = StepCost(), StepCost()
        self.refused = self.refused_tokens = 0
        self._at_once = config.max_num_seqs
        self._builder = StepBuilder(
            groups=[group.name for group in plan.groups],
            page_size=plan.page_size,
            max_tokens=config.max_num_batched_tokens,
            max_seqs=config.max_num_seqs,
            max_pages=-(-context_length // plan.page_size),
        )
        self._replies: dict[Request, np.ndarray] = {}

    @property
    def cost(self) -> StepCost:
        """Of all steps."""
        kinds = self.reading, self.decoding
        return StepCost(sum(kind.steps for kind in kinds), sum(kind.cpu_seconds for kind in kinds))

    def run(self, scripts: Iterable[Script], submitted: Callable[[int], None] = lambda _: None) -> None:
        """Answer all, as many at once as the scheduler runs.

        Args:
            scripts: asked for one by one, when there is room.
            submitted: told the tokens of each prompt.
        """
        left = iter(scripts)
        while True:
            self._fill(left, submitted)
            if not self._replies:
                return
            self._step()

    def _fill(self, left: Iterator[Script], submitted: Callable[[int], None]) -> None:
        while len(self._replies) < self._at_once:
            script = next(left, None)
            if script is None:
                return
            request = Request(Prompt(script.prompt), len(script.reply), self._info)
            submitted(request.prompt_length)
            try:
                self.scheduler.submit(request)
            except CapacityError:
                self.refused += 1
                self.refused_tokens += request.prompt_length
            else:
                self._replies[request] = script.reply

    def _step(self) -> None:
        started = thread_time()
        scheduled = self.scheduler.schedule()
        self._builder.build([chunk for _, chunk in scheduled])
        reads = False
        for request, chunk in scheduled:
            reads = reads or chunk.start < request.prompt_length
            self.scheduler.commit(request, chunk)
            if request.generates and chunk.end == request.length:
                self.scheduler.append(request, int(self._replies[request][request.num_completion_tokens]))
            if request.finish_reason is not None:
                del self._replies[request]
        cost = self.reading if reads else self.decoding
        cost.cpu_seconds += thread_time() - started
        cost.steps += 1


def _make_scheduler(
    plan: FoldPlan, config: RuntimeConfig, vocab_size: int, context_length: int, tier: KvTier | None
) -> tuple[Scheduler, EngineInfo]:
    """A scheduler over the memory that an engine of the plan would have."""
    slabs = slab_pages(plan, UNITS["cpu"])
    budget = kv_cache_bytes(plan, slabs, config, context_length)
    pages = address_pages(plan, budget, slabs)
    info = EngineInfo(plan, budget, pages, slabs, vocab_size, context_length, "")
    return Scheduler(info, config, NoPages(), tier), info
