"""Requests through the scheduler and its memory, whose steps nobody computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import thread_time

import numpy as np

from kvfold.plugins.contract.errors import CapacityError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.protocol import EngineInfo
from kvfold.runtime.memory.budget import pages_for
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.scheduler.request import Prompt, Request
from kvfold.runtime.scheduler.scheduler import Scheduler
from kvfold.runtime.scheduler.step_builder import StepBuilder


@dataclass(frozen=True)
class Script:
    """What a request reads, and the reply that it will have.

    Attributes:
        prompt: int64, token ids.
        reply: int64, at least one.
    """

    prompt: np.ndarray
    reply: np.ndarray


@dataclass
class Driven:
    """What came of the requests.

    Attributes:
        steps: that would have been computed.
        cpu_seconds: of scheduling and packing them, in the thread that did.
        refused: requests that could never run.
        refused_tokens: of their prompts.
    """

    steps: int = 0
    cpu_seconds: float = 0.0
    refused: int = 0
    refused_tokens: int = 0


def make_scheduler(
    plan: FoldPlan, config: RuntimeConfig, vocab_size: int, context_length: int
) -> tuple[Scheduler, EngineInfo]:
    """A scheduler over the memory that an engine of this plan would have; raises CapacityError."""
    info = EngineInfo(plan, pages_for(plan, config, context_length), vocab_size, context_length, "")
    return Scheduler(info, config), info


class Drive:
    """Drives a scheduler as the engine's loop does, but samples what the scripts say."""

    def __init__(
        self, plan: FoldPlan, config: RuntimeConfig, vocab_size: int, context_length: int
    ) -> None:
        """Nothing running yet."""
        self.scheduler, self._info = make_scheduler(plan, config, vocab_size, context_length)
        self.driven = Driven()
        self._at_once = config.max_num_seqs
        self._builder = StepBuilder(
            groups=[group.name for group in plan.groups],
            page_size=plan.page_size,
            max_tokens=config.max_num_batched_tokens,
            max_seqs=config.max_num_seqs,
            max_pages=-(-context_length // plan.page_size),
        )
        self._replies: dict[Request, np.ndarray] = {}

    def run(self, scripts: Iterable[Script], begun: Callable[[int], None] = lambda _: None) -> None:
        """Answer all, so many at once; `begun` is told the prompt tokens of each that is let in."""
        left = iter(scripts)
        while True:
            self._fill(left, begun)
            if not self._replies:
                return
            self._step()

    def _fill(self, left: Iterator[Script], begun: Callable[[int], None]) -> None:
        while len(self._replies) < self._at_once:
            script = next(left, None)
            if script is None:
                return
            request = Request(Prompt(script.prompt), len(script.reply), self._info)
            begun(request.prompt_length)
            try:
                self.scheduler.submit(request)
            except CapacityError:
                self.driven.refused += 1
                self.driven.refused_tokens += request.prompt_length
                continue
            self._replies[request] = script.reply

    def _step(self) -> None:
        started = thread_time()
        scheduled = self.scheduler.schedule()
        self._builder.build([chunk for _, chunk in scheduled])
        for request, chunk in scheduled:
            self.scheduler.commit(request, chunk)
            if chunk.end == request.length:
                self.scheduler.append(request, int(self._replies[request][request.num_completion_tokens]))
                if request.finish_reason is not None:
                    del self._replies[request]
        self.driven.cpu_seconds += thread_time() - started
        self.driven.steps += 1
