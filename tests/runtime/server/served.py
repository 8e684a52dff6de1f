"""A server over a puppet, with a route that says what the LLM says."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kvfold.runtime.loop.ticket import Service
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.server.app import Application
from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.http import EventStream, Request, Response, sse
from kvfold.runtime.server.observe.health_routes import health_routes
from kvfold.runtime.server.route_table import Route, Routes
from kvfold.runtime.server.state import ServerState
from tests.runtime.server.puppet_llm import PuppetLLM

LIMITS = AdmissionLimits(max_running=2, max_waiting=2)


class Say(msgspec.Struct):
    """What the route takes."""

    prompt: str = "hi"
    stream: bool = False
    anything: Any = None


async def say(request: Request, state: ServerState) -> Response | EventStream:
    """Submit a prompt of one token a byte; stream its pieces, or answer with all."""
    asked = await request.json(Say)
    prompt = Prompt(np.frombuffer(asked.prompt.encode(), np.uint8).astype(np.int64))
    (reply,) = state.submit_several(request, prompt, [SamplingParams()], Service())
    if not asked.stream:
        completion = await reply.finished()
        return Response.json({"text": completion.text})

    async def events() -> AsyncGenerator[bytes, None]:
        async for chunk in reply:
            yield sse(chunk.text.encode())

    return EventStream(events())


async def broken(request: Request, state: ServerState) -> Response:
    """A bug."""
    raise ValueError(request.query["prompt"])


async def echo(request: Request, state: ServerState) -> Response:
    """What the route and the query named, and whose key it was."""
    return Response.json({**request.path_params, **request.query, "tenant": request.tenant})


ROUTES = [
    Route("POST", "/say", say),
    Route("GET", "/broken", broken),
    Route("GET", "/things/{id}", echo),
    Route("DELETE", "/things/{id}", echo, "admin"),
    Route("GET", "/things/mine", echo),
]


def make_server(
    llm: PuppetLLM | None, keys: Path | None = None, limits: AdmissionLimits = LIMITS
) -> tuple[Application, ServerState]:
    """The application, and its state; without an LLM it is loading."""
    state = ServerState("puppet", Gate(keys), limits)
    if llm is not None:
        state.loaded(llm, None)
    return Application(Routes([*ROUTES, *health_routes(state)]), state), state
