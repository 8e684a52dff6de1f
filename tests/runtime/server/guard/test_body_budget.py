"""Long bodies that are inside at once are bounded together; short ones always fit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from kvfold.runtime.server import http
from kvfold.runtime.server.app import Application
from kvfold.runtime.server.guard import body_budget
from kvfold.runtime.server.guard.body_budget import UNCOUNTED_BYTES, BodyBudget
from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.state import ServerState
from tests.runtime.server.asgi_client import JSON, Exchange, ask, until
from tests.runtime.server.puppet_llm import PuppetLLM
from tests.runtime.server.served import make_server

LONG = UNCOUNTED_BYTES + 1


@pytest.fixture(autouse=True)
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_budget, "MAX_BODIES_BYTES", 2 * LONG)


def sending(app: Application, parts: Sequence[bytes], headers: Mapping[str, str] | None = None) -> Exchange:
    """A client whose body does not end."""
    return Exchange(app, "POST", "/say", parts, {**JSON, **(headers or {})})


def server() -> tuple[Application, ServerState]:
    return make_server(PuppetLLM())


def test_what_is_held_grows_is_given_back_and_never_passes_the_limit() -> None:
    reasons: list[str] = []
    budget = BodyBudget(reasons.append)
    assert budget.resize(0, UNCOUNTED_BYTES) == 0 and budget.held == 0
    first = budget.resize(0, LONG)
    first = budget.resize(first, 2 * LONG)
    assert first == budget.held == 2 * LONG
    with pytest.raises(HttpError, match=f"{2 * LONG} bytes are inside") as refused:
        budget.resize(0, LONG)
    assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "1")
    assert reasons == ["bodies"] and budget.held == 2 * LONG
    assert budget.resize(first, 0) == budget.held == 0
    assert budget.resize(0, LONG) == budget.held == LONG


def test_a_long_body_that_has_no_room_is_refused_before_it_is_read_and_a_short_one_served() -> None:
    async def call() -> None:
        app, state = server()
        held = [sending(app, [], {"content-length": str(LONG)}) for _ in range(2)]
        await until(lambda: state.bodies.held == 2 * LONG)
        answer = await sending(app, [], {"content-length": str(LONG)}).end()
        assert (answer.status, answer.error["code"]) == (429, "busy")
        assert state.metrics.refusals["bodies"] == 1
        assert (await ask(app, "POST", "/say", {"prompt": "a"})).status == 200
        held[0].leave()
        await held[0].end()
        assert state.bodies.held == LONG
        assert (await ask(app, "POST", "/say", {"anything": " " * LONG})).status == 429, "8 bytes too long"
        held[1].leave()
        await held[1].end()
        assert (await ask(app, "POST", "/say", {"anything": " " * LONG})).status == 200
        assert state.bodies.held == 0

    asyncio.run(asyncio.wait_for(call(), 30))


def test_a_body_of_unknown_length_counts_as_it_comes() -> None:
    async def call() -> None:
        app, state = server()
        held = sending(app, [b" " * LONG, b""])
        assert (await held.end()).status == 400, "it is no JSON"
        whole = sending(app, [b" " * LONG] * 3 + [b"{}"])
        assert (await whole.end()).status == 429
        assert state.bodies.held == 0

    asyncio.run(asyncio.wait_for(call(), 30))


def test_a_body_is_held_while_its_reply_is_written() -> None:
    async def call() -> None:
        llm = PuppetLLM()
        app, state = make_server(llm)
        llm.go.clear()
        body = b'{"stream": true, "anything": "' + b" " * LONG + b'"}'
        exchange = Exchange(app, "POST", "/say", body, JSON)
        await until(lambda: llm.replies)
        assert state.bodies.held == len(body)
        llm.go.set()
        await exchange.end()
        assert state.bodies.held == 0

    asyncio.run(asyncio.wait_for(call(), 30))


def test_a_body_that_is_too_slow_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS", 0.01)

    async def call() -> None:
        app, state = server()
        answer = await sending(app, [], {"content-length": str(LONG)}).end()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert state.bodies.held == 0

    asyncio.run(asyncio.wait_for(call(), 30))
