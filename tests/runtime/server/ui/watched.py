"""A server over the synthetic engine, in this process, and what watches it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.server.app import Application
from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.observe.health_routes import health_routes
from kvfold.runtime.server.route_table import Routes
from kvfold.runtime.server.routes.api import api_routes
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.ui.ui_routes import ui_routes
from tests.runtime.harness import PLANS, make_llm
from tests.runtime.server.asgi_client import JSON, Answer, Exchange, ask, until

EVENTS, CACHE, COMPLETIONS = "/v1/kvfold/events", "/v1/kvfold/cache", "/v1/completions"


def make_app(keys: Path | None = None) -> tuple[Application, ServerState]:
    """The APIs and the page, without a model."""
    state = ServerState("tiny", Gate(keys), AdmissionLimits(4, 8))
    return Application(Routes([*api_routes(state), *health_routes(state), *ui_routes()]), state), state


class Watched:
    """A server whose model is there, and who asks it."""

    def __init__(self, app: Application, state: ServerState) -> None:
        self.app = app
        self.state = state

    async def complete(
        self, prompt: list[int], headers: Mapping[str, str] | None = None, **fields: Any
    ) -> Answer:
        """A whole completion of token ids."""
        answer = await ask(
            self.app, "POST", COMPLETIONS, {"prompt": prompt, "max_tokens": 2, **fields}, headers
        )
        assert answer.status == 200, answer.body
        return answer

    def stream(self, prompt: list[int], headers: Mapping[str, str] | None = None) -> Exchange:
        """A long stream."""
        body = {"prompt": prompt, "max_tokens": 400, "stream": True}
        return Exchange(self.app, "POST", COMPLETIONS, json.dumps(body).encode(), {**JSON, **(headers or {})})

    async def runs(self, exchange: Exchange) -> None:
        """Wait until a stream is seen to run."""
        await until(lambda: exchange.answer.parts and self.state.llm.snapshot().requests)

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """An answer."""
        return await ask(self.app, "GET", path, None, headers)

    async def events(self, count: int, headers: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The first snapshots that a new watcher gets."""
        exchange = Exchange(self.app, "GET", EVENTS, headers=headers)
        await until(lambda: len(snapshots(exchange)) >= count or exchange.answer.complete)
        exchange.leave()
        await exchange.end()
        return snapshots(exchange)[:count]


def snapshots(exchange: Exchange) -> list[dict[str, Any]]:
    """Data of all events so far."""
    blocks = exchange.answer.body.decode().split("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block.startswith("data: ")]


def slow_llm() -> LLM:
    """One whose steps take some milliseconds, so that a stream can be watched."""
    llm, engine = make_llm(PLANS["hybrid"])
    execute = engine.execute

    def wait(step: StepInputs) -> np.ndarray:
        time.sleep(0.005)
        return execute(step)

    engine.execute = wait  # type: ignore[method-assign]
    return llm


@asynccontextmanager
async def watched(keys: Path | None = None, llm: LLM | None = None) -> AsyncIterator[Watched]:
    """A server with a model, until the block ends."""
    app, state = make_app(keys)
    async with AsyncLLM(llm or slow_llm()) as served:
        state.loaded(served, None)
        yield Watched(app, state)
        await asyncio.sleep(0)
