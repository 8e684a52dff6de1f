"""How much may wait, what a refusal says, and when the server is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from kvfold.plugins.contract.errors import CapacityError, KvfoldError, RequestError
from kvfold.runtime.server.guard.admission import Admission
from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.http import HttpError
from tests.runtime.server.asgi_client import JSON, Exchange, ask, until
from tests.runtime.server.puppet_llm import PuppetLLM
from tests.runtime.server.served import make_server


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 30))

    del run.__wrapped__  # pytest would look at the coroutine
    return run


@in_loop
async def test_what_waits_is_bounded_by_requests() -> None:
    llm = PuppetLLM()
    app, state = make_server(llm, limits=AdmissionLimits(max_running=2, max_waiting=2))
    llm.go.clear()
    running = [Exchange(app, "POST", "/say", b"{}", JSON) for _ in range(4)]
    await until(lambda: len(llm.replies) == 4)
    refused = await ask(app, "POST", "/say", {})
    assert (refused.status, refused.error["type"], refused.error["code"]) == (429, "rate_limit_error", "busy")
    assert "2 replies wait already, of 2" in refused.error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    llm.go.set()
    assert [(await one.end()).status for one in running] == [200] * 4
    assert state.admission.inside == state.admission.waiting_tokens == 0
    assert (await ask(app, "POST", "/say", {})).status == 200
    assert state.metrics.refusals["requests"] == 1


@in_loop
async def test_with_no_queue_what_runs_still_runs() -> None:
    llm = PuppetLLM()
    app, _ = make_server(llm, limits=AdmissionLimits(max_running=1, max_waiting=0))
    llm.go.clear()
    one = Exchange(app, "POST", "/say", b"{}", JSON)
    await until(lambda: llm.replies)
    assert (await ask(app, "POST", "/say", {})).status == 429
    llm.go.set()
    assert (await one.end()).status == 200


def test_every_reply_of_a_request_counts() -> None:
    refusals: list[str] = []
    admission = Admission(AdmissionLimits(max_running=2, max_waiting=3), refusals.append)
    admission.check(replies=5, own=0, tokens=1, prefill_rate=0.0)
    for _ in range(2):
        admission.admit(1)
    with pytest.raises(HttpError, match="0 replies wait already, of 3") as busy:
        admission.check(replies=4, own=0, tokens=1, prefill_rate=0.0)
    assert busy.value.status == 429 and refusals == ["requests"]
    with pytest.raises(HttpError, match="more than 5 replies") as never:
        admission.check(replies=2, own=4, tokens=1, prefill_rate=0.0)
    assert never.value.status == 400, "that it is too much does not pass with time"


@in_loop
async def test_what_waits_is_bounded_by_seconds_of_prefill_and_the_first_prompt_is_always_taken() -> None:
    llm = PuppetLLM()
    llm.see(prefill_rate=10.0)
    app, _ = make_server(llm, limits=AdmissionLimits(max_running=8, max_waiting=8, max_waiting_seconds=30))
    llm.go.clear()
    long = Exchange(app, "POST", "/say", b'{"prompt": "%s"}' % (b"x" * 400), JSON)
    await until(lambda: llm.replies)
    refused = await ask(app, "POST", "/say", {"prompt": "short"})
    assert refused.status == 429
    assert "400 prompt tokens wait already, and 5 more would be 40 s of work" in refused.error["message"]
    assert refused.headers["retry-after"] == "20"  # half of the 40 s that wait
    llm.go.set()
    assert (await long.end()).status == 200
    assert (await ask(app, "POST", "/say", {"prompt": "short"})).status == 200


@in_loop
async def test_what_the_cache_has_does_not_wait() -> None:
    llm = PuppetLLM()
    app, state = make_server(llm)
    llm.cached = 3
    llm.go.clear()
    one = Exchange(app, "POST", "/say", b'{"prompt": "12345"}', JSON)
    await until(lambda: llm.replies)
    assert state.admission.waiting_tokens == 2
    llm.go.set()
    await one.end()


@in_loop
async def test_a_prompt_waits_until_its_first_token() -> None:
    llm = PuppetLLM()
    app, state = make_server(llm)
    llm.go.clear()
    one = Exchange(app, "POST", "/say", b'{"prompt": "12345", "stream": true}', JSON)
    await until(lambda: llm.replies)
    assert (state.admission.waiting_tokens, state.admission.inside) == (5, 1)
    llm.go.set()
    await until(lambda: one.answer.parts)
    llm.go.clear()
    assert state.admission.waiting_tokens == 0
    llm.go.set()
    await one.end()


@in_loop
async def test_errors_of_the_core_have_their_status() -> None:
    for error, status, kind in (
        (RequestError("the prompt is empty"), 400, "invalid_request_error"),
        (CapacityError("it needs 9 pages of 4"), 400, "invalid_request_error"),
        (KvfoldError("the engine failed"), 503, "server_error"),
    ):
        llm = PuppetLLM()
        app, state = make_server(llm)
        llm.refuses = error
        answer = await ask(app, "POST", "/say", {})
        assert (answer.status, answer.error["type"]) == (status, kind)
        assert answer.error["message"] == str(error)
        assert state.admission.inside == 0


@in_loop
async def test_it_answers_while_it_loads() -> None:
    app, state = make_server(None)
    answer = await ask(app, "GET", "/health/ready")
    assert (answer.status, answer.json()) == (503, {"status": "loading"})
    answer = await ask(app, "GET", "/health")
    assert (answer.status, answer.json()["reason"][:8]) == (503, "loading:")
    refused = await ask(app, "POST", "/say", {})
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "loading", "5")
    assert (await ask(app, "GET", "/health/live")).status == 200
    assert (await ask(app, "GET", "/metrics")).status == 200
    state.loaded(PuppetLLM(), None)
    assert (await ask(app, "GET", "/health/ready")).json() == {"status": "ready"}


@in_loop
async def test_while_it_drains_new_requests_are_503_and_running_ones_end() -> None:
    llm = PuppetLLM()
    app, state = make_server(llm)
    llm.go.clear()
    one = Exchange(app, "POST", "/say", b"{}", JSON)
    await until(lambda: llm.replies)
    state.draining = True
    refused = await ask(app, "POST", "/say", {})
    assert (refused.status, refused.error["code"]) == (503, "draining")
    assert "retry-after" in refused.headers
    assert (await ask(app, "GET", "/health")).json()["reason"].startswith("draining:")
    llm.go.set()
    assert (await one.end()).status == 200
    assert state.metrics.refusals["draining"] == 1


@in_loop
async def test_a_dead_engine_is_503() -> None:
    llm = PuppetLLM()
    app, _ = make_server(llm)
    llm.failure = KvfoldError("out of memory")
    refused = await ask(app, "POST", "/say", {})
    assert (refused.status, refused.error["code"]) == (503, "dead")
    assert (await ask(app, "GET", "/health")).json()["reason"].startswith("dead:")


@in_loop
async def test_a_hung_step_is_seen_and_an_idle_engine_is_well() -> None:
    llm = PuppetLLM()
    app, state = make_server(llm)
    hours_ago = time.monotonic() - 7200
    llm.see(last_step=hours_ago, busy=False)
    assert state.why_not_ready() is None and state.step_age() == 0
    llm.see(last_step=time.monotonic() - 40, busy=True)
    answer = await ask(app, "GET", "/health")
    assert answer.status == 503 and answer.json()["reason"].startswith("hung: the last step ended 40 s ago")
    assert (await ask(app, "GET", "/health/live")).status == 200
