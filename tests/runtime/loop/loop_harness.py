"""A loop over the synthetic engine, and tickets for it."""

from __future__ import annotations

import numpy as np

from kvfold.runtime.loop.core import Outcome
from kvfold.runtime.loop.engine_loop import EngineLoop
from kvfold.runtime.loop.ticket import Ticket
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.sampling.sampling_state import SamplingState
from kvfold.runtime.scheduler.request import Prompt, Request
from tests.runtime.harness import PLANS
from tests.runtime.synthetic_engine import SyntheticEngine

PLAN = PLANS["hybrid"]


def make_loop(engine: SyntheticEngine | None = None, batched: int = 64, seqs: int = 4) -> EngineLoop:
    config = RuntimeConfig(max_num_batched_tokens=batched, max_num_seqs=seqs)
    return EngineLoop(engine or SyntheticEngine(PLAN), config)


def make_ticket(
    loop: EngineLoop,
    prompt: list[int],
    count: int = 8,
    *,
    tenant: str = "",
    priority: int = 0,
    deadline: float | None = None,
) -> Ticket:
    read = Prompt(np.array(prompt), tenant=tenant)
    request = Request(read, count, loop.info, priority=priority)
    return Ticket(request, make_state(loop, prompt, count), deadline=deadline)


def make_state(loop: EngineLoop, prompt: list[int], count: int) -> SamplingState:
    return SamplingState(SamplingParams(max_tokens=count), np.array(prompt), (), loop.info.vocab_size)


def check(loop: EngineLoop) -> None:
    loop.core.scheduler.memory.check_integrity(loop.core.scheduler.sequences)


def run_all(loop: EngineLoop) -> None:
    while loop.turn().outcome is Outcome.COMMITTED:
        check(loop)
