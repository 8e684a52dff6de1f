"""What tests of AsyncLLM and of its sessions share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import sleep
from typing import Any

import numpy as np

from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.scheduler.request import Prompt
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS, check, in_use
from tests.runtime.synthetic_engine import SyntheticEngine

PLAN = PLANS["hybrid"]


class Slow(SyntheticEngine):
    """Takes two milliseconds a step."""

    def execute(self, step: StepInputs) -> np.ndarray:
        sleep(0.002)
        return super().execute(step)


def make_slow(engine: type[SyntheticEngine] = Slow, seqs: int = 4) -> LLM:
    made = engine(PLAN, 200, vocab=VOCAB)
    return LLM(made, ByteTokenizer(()), RuntimeConfig(max_num_batched_tokens=64, max_num_seqs=seqs))


def run(llm: LLM, work: Callable[[AsyncLLM], Coroutine[Any, Any, None]]) -> None:
    """Work with an AsyncLLM, which then leaves nothing behind."""

    async def inside() -> None:
        async with AsyncLLM(llm) as served:
            await asyncio.wait_for(work(served), 60)

    asyncio.run(inside())
    assert in_use(llm) == 0
    check(llm)


def prompt(ids: list[int]) -> Prompt:
    return Prompt(np.array(ids))
