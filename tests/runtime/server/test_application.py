"""Requests and answers, without a network."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.server import http, streaming
from kvfold.runtime.server.http import MAX_BODY_BYTES
from tests.runtime.server.asgi_client import JSON, Exchange, ask, until
from tests.runtime.server.puppet_llm import PuppetLLM
from tests.runtime.server.served import make_server


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, 30))


def get(path: str, method: str = "GET", value: Any = None, headers: Any = None) -> Any:
    async def call() -> Any:
        return await ask(make_server(PuppetLLM())[0], method, path, value, headers)

    return run(call())


def test_parts_of_the_path_and_the_query_arrive_decoded() -> None:
    assert get("/things/a%2Fb%20c?x=1&y=%C3%A9").json() == {"id": "a/b c", "x": "1", "y": "é", "tenant": ""}


def test_a_literal_path_wins_over_one_with_parts() -> None:
    assert "id" not in get("/things/mine").json()


def test_an_unknown_path_is_404_and_a_wrong_method_405_that_says_which_are_right() -> None:
    assert get("/nothing").status == 404
    answer = get("/things/1", "PUT")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, DELETE, HEAD")
    assert get("/things/1", "OPTIONS").status == 405


def test_head_is_get_without_a_body() -> None:
    answer, whole = get("/things/1", "HEAD"), get("/things/1")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == str(len(whole.body))


def test_a_request_id_comes_back_and_a_strange_one_is_replaced() -> None:
    assert get("/things/1", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for strange in ("a b", "x" * 200, "", "é"):
        given = get("/things/1", headers={"x-request-id": strange}).headers["x-request-id"]
        assert len(given) == 32 and given.isalnum()


def test_a_bug_is_a_500_that_tells_nothing_to_the_client_and_no_prompt_to_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "kvfold.server"):
        answer = get("/broken?prompt=secret", headers={"x-request-id": "abc"})
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert "secret" not in answer.body.decode() + caplog.text
    assert "abc failed with ValueError" in caplog.text and "served.py" in caplog.text


def test_a_line_in_the_log_tells_the_tokens_and_never_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kvfold.server"):
        get("/say?secret=1", "POST", {"prompt": "secret"})
    assert "POST /say 200" in caplog.text and "prompt=6 reused=1 reply=3" in caplog.text
    assert "secret" not in caplog.text


def test_what_cannot_stand_in_a_header_is_replaced() -> None:
    async def call() -> Any:
        app, _ = make_server(PuppetLLM())
        return await ask(app, "GET", "/things/1", headers={"host": "evil\r\nset-cookie: a"})

    assert run(call()).status == 403


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b'{"prompt": "\xff"}', "no JSON"),
        (b'{"prompt": "\\ud800"}', "no JSON"),
        (b'{"anything": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"anything": ' + b'{"a":' * 300_000, "nested too deeply"),
        (b'{"anything": ' + b"1" * 2_000_000 + b"}", "out of range"),
        (b'{"anything": 1e999999999}', "out of range"),
        (b"[]", "Expected `object`"),
    ],
)
def test_a_body_that_is_no_json_or_a_bomb_is_a_400(body: bytes, said: str) -> None:
    answer = get("/say", "POST", body)
    assert answer.status == 400
    assert said in answer.error["message"]


def test_a_wrong_field_is_named() -> None:
    answer = get("/say", "POST", {"stream": 3})
    assert (answer.status, answer.error["param"]) == (400, "stream")
    assert "Expected `bool`" in answer.error["message"]


def test_a_form_of_a_foreign_page_is_refused() -> None:
    answer = get("/say", "POST", b'{"prompt": "a"}', {"content-type": "text/plain"})
    assert answer.status == 415


def test_a_long_body_is_413_whether_it_says_so_or_not() -> None:
    async def call() -> None:
        app, _ = make_server(PuppetLLM())
        said = Exchange(app, "POST", "/say", b"", {**JSON, "content-length": str(MAX_BODY_BYTES + 1)})
        assert (await said.end()).status == 413
        parts = [b" " * 2**20] * 3
        assert (await Exchange(app, "POST", "/say", parts, JSON).end()).status == 413
        fits = [b" " * (MAX_BODY_BYTES - 2), b"{}"]
        assert (await Exchange(app, "POST", "/say", fits, JSON).end()).status == 200
        odd = Exchange(app, "POST", "/say", b"{}", {**JSON, "content-length": "-1"})
        assert (await odd.end()).status == 400

    run(call())


def test_a_body_that_never_ends_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS", 0.01)

    async def call() -> Any:
        app, _ = make_server(PuppetLLM())
        exchange = Exchange(app, "POST", "/say", [], JSON)
        return await exchange.end()

    assert run(call()).status == 408


def test_a_stream_is_sent_as_it_comes_and_ends() -> None:
    answer = get("/say", "POST", {"stream": True})
    assert answer.parts == [b"data: a\n\n", b"data: b\n\n", b"data: c\n\n", b""]
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.complete


def test_an_error_inside_a_stream_is_an_event_and_the_end() -> None:
    async def call() -> None:
        llm = PuppetLLM()
        app, state = make_server(llm)
        llm.go.clear()
        exchange = Exchange(app, "POST", "/say", b'{"stream": true}', JSON)
        await until(lambda: llm.replies)
        llm.replies[0].failure = KvfoldError("the engine failed")
        llm.go.set()
        answer = await exchange.end()
        assert b'"message":"the engine failed"' in answer.body and b'"code":"engine_error"' in answer.body
        assert answer.complete and state.admission.inside == 0
        assert state.metrics.ends["error"] == 1

    run(call())


@pytest.mark.parametrize("stream", [b"true", b"false"])
def test_a_client_that_leaves_cancels_its_reply(stream: bytes) -> None:
    async def call() -> None:
        llm = PuppetLLM()
        app, state = make_server(llm)
        llm.go.clear()
        exchange = Exchange(app, "POST", "/say", b'{"stream": ' + stream + b"}", JSON)
        await until(lambda: llm.replies)
        exchange.leave()
        await exchange.end()
        assert llm.replies[0].cancelled == "client"
        assert state.admission.inside == 0 and state.admission.waiting_tokens == 0
        assert state.metrics.cancelled["client"] == 1

    run(call())


def test_a_client_that_leaves_in_its_body_ends_quietly() -> None:
    async def call() -> None:
        app, _ = make_server(PuppetLLM())
        exchange = Exchange(app, "POST", "/say", [], JSON)
        exchange.leave()
        assert (await exchange.end()).status == 0

    run(call())


def test_a_silent_stream_gets_comments_and_a_busy_one_does_not() -> None:
    async def call() -> None:
        llm = PuppetLLM()
        app, state = make_server(llm)
        llm.go.clear()
        exchange = Exchange(app, "POST", "/say", b'{"stream": true}', JSON)
        parts = exchange.answer.parts
        await until(lambda: exchange.answer.status)
        start = asyncio.get_running_loop().time()

        async def seen(seconds: float) -> int:
            state.sweep.look(start + seconds)
            await asyncio.sleep(0)
            return parts.count(b": keep-alive\n\n")

        assert [await seen(at) for at in (14, 16, 17, 30, 32, 33)] == [0, 1, 1, 1, 2, 2]
        llm.go.set()
        await until(lambda: b"data: a\n\n" in parts)
        llm.go.clear()
        assert [await seen(at) for at in (45, 46, 59, 62)] == [2, 2, 2, 3], (
            "silence counts from the look that saw it"
        )
        exchange.reads.clear()
        assert [await seen(at) for at in (78, 79, 95)] == [3, 3, 3], (
            "a client that reads nothing gets no more"
        )
        exchange.reads.set()
        llm.go.set()
        assert (await exchange.end()).complete
        assert parts.count(b": keep-alive\n\n") == 4

    run(call())


def test_a_reader_that_does_not_read_is_cut() -> None:
    async def call() -> None:
        llm = PuppetLLM()
        app, state = make_server(llm)
        state.sweep = streaming.StreamSweep(streaming.StreamLimits(look_seconds=0.01))
        aborted: list[bool] = []
        llm.go.clear()
        exchange = Exchange(
            app, "POST", "/say", b'{"stream": true}', JSON, {"kvfold.abort": lambda: aborted.append(True)}
        )
        await until(lambda: exchange.answer.status)
        exchange.reads.clear()
        llm.replies[0].unread_characters = 2**20
        await asyncio.sleep(0.05)
        assert not exchange.task.done() and state.sweep.unread() == 2**20
        llm.replies[0].unread_characters += 1
        answer = await exchange.end()
        assert aborted == [True] and not answer.complete
        assert llm.replies[0].cancelled == "client" and state.admission.inside == 0

    run(call())
