"""The real AsyncLLM behind the server, over an engine whose steps a test holds, breaks or lets go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from time import sleep
from typing import Any

import numpy as np

from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.server.app import Application
from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.state import ServerState
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS, check, in_use
from tests.runtime.server.asgi_client import JSON, Exchange, ask, until
from tests.runtime.server.served import make_server
from tests.runtime.synthetic_engine import SyntheticEngine

STREAM = b'{"prompt": "a long enough prompt", "stream": true}'


class HeldEngine(SyntheticEngine):
    """Takes a millisecond a step, waits in it until it may go, and may fail in it."""

    def __init__(self) -> None:
        super().__init__(PLANS["hybrid"], 64, vocab=VOCAB, context=512)
        self.may_go = threading.Event()
        self.may_go.set()
        self.fails = False

    def execute(self, step: StepInputs) -> np.ndarray:
        self.may_go.wait()
        sleep(0.001)
        if self.fails:
            raise MemoryError("no memory for the step")
        return super().execute(step)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Application, ServerState, HeldEngine, AsyncLLM]]:
    engine = HeldEngine()
    llm = AsyncLLM(LLM(engine, ByteTokenizer(()), RuntimeConfig(max_num_batched_tokens=64, max_num_seqs=4)))
    app, state = make_server(None)
    state.loaded(llm, None, AdmissionLimits(max_running=4, max_waiting=4))
    try:
        yield app, state, engine, llm
    finally:
        engine.may_go.set()
        await llm.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_client_that_leaves_gives_its_pages_back_within_a_step() -> None:
    async def test() -> None:
        async with serving() as (app, _, engine, llm):
            exchange = Exchange(app, "POST", "/say", STREAM, JSON)
            await until(lambda: len(exchange.answer.parts) > 3)
            assert in_use(llm.llm) > 0
            exchange.leave()
            await exchange.end()
            steps = engine.steps
            await until(lambda: in_use(llm.llm) == 0)
            assert engine.steps <= steps + 2  # one was in progress
            check(llm.llm)

    run(test)


def test_a_prompt_that_was_said_before_is_reused_and_not_queued() -> None:
    async def test() -> None:
        async with serving() as (app, state, _, _):
            said = {"prompt": "x" * 100}
            for _ in range(2):
                assert (await ask(app, "POST", "/say", said)).status == 200
            await until(lambda: state.llm.snapshot().metrics.cache.hit_tokens > 0)

    run(test)


def test_a_hung_step_is_seen_from_outside() -> None:
    async def test() -> None:
        async with serving() as (app, state, engine, _):
            state.stall_seconds = 0.05
            engine.may_go.clear()
            exchange = Exchange(app, "POST", "/say", STREAM, JSON)
            await until(lambda: state.llm.snapshot().busy)
            await asyncio.sleep(0.1)
            assert (await ask(app, "GET", "/health")).json()["reason"].startswith("hung:")
            assert (await ask(app, "GET", "/health/live")).status == 200
            engine.may_go.set()
            await exchange.end()
            await until(lambda: state.why_not_ready() is None)

    run(test)


def test_an_idle_server_stays_ready_also_after_a_request_that_was_never_computed() -> None:
    async def test() -> None:
        async with serving() as (app, state, _, llm):
            state.stall_seconds = 0.02
            exchange = Exchange(app, "POST", "/say", STREAM, JSON)
            exchange.leave()
            await exchange.end()
            await until(lambda: not llm.snapshot().busy)
            time.sleep(0.05)
            assert state.why_not_ready() is None

    run(test)


def test_an_engine_that_fails_ends_every_stream_with_an_error_event() -> None:
    async def test() -> None:
        async with serving() as (app, state, engine, llm):
            exchanges = [Exchange(app, "POST", "/say", STREAM, JSON) for _ in range(3)]
            await until(lambda: all(len(exchange.answer.parts) > 1 for exchange in exchanges))
            whole = Exchange(app, "POST", "/say", b'{"prompt": "abc"}', JSON)
            await until(lambda: state.admission.inside == 4)
            engine.fails = True
            for exchange in exchanges:
                answer = await exchange.end()
                assert b"no memory for the step" in answer.parts[-2] and answer.complete
                assert b'"code":"engine_error"' in answer.parts[-2]
            assert (await whole.end()).status == 503
            assert llm.failure is not None and (state.why_not_ready() or "").startswith("dead:")
            assert (await ask(app, "POST", "/say", {})).error["code"] == "dead"
            assert state.admission.inside == 0

    run(test)


def test_a_burst_between_two_steps_is_bounded() -> None:
    async def test() -> None:
        async with serving() as (app, state, engine, _):
            engine.may_go.clear()
            exchanges = [Exchange(app, "POST", "/say", b"{}", JSON) for _ in range(20)]
            await until(lambda: sum(exchange.task.done() for exchange in exchanges) == 12)
            refused = [exchange.answer for exchange in exchanges if exchange.task.done()]
            assert {answer.status for answer in refused} == {429}
            engine.may_go.set()
            assert sorted([(await exchange.end()).status for exchange in exchanges]) == [200] * 8 + [429] * 12
            assert state.admission.inside == state.admission.waiting_tokens == 0

    run(test)
