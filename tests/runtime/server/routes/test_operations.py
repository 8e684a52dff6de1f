"""Models, tokens, and the requests that run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.runtime.server.asgi_client import Answer, until
from tests.runtime.server.routes.ask_server import MODEL, Server, chat, events
from tests.runtime.server.routes.scripted_llm import Script, ScriptedLLM

REQUESTS = "/v1/kvfold/requests"


def get(path: str) -> Answer:
    return asyncio.run(Server().ask("GET", path))


def test_the_model_is_listed_and_found_by_name() -> None:
    (model,) = get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (MODEL, "model", 512)
    assert get(f"/v1/models/{MODEL}").json()["id"] == MODEL
    answer = get("/v1/models/gpt")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "Hi"}, [72, 105]),
        ({"prompt": "Hi", "add_special_tokens": False}, [72, 105]),
        (chat("Hi", add_generation_prompt=False), [256, *b"user\nHi", 257, 10]),
        (chat("Hi"), [256, *b"user\nHi", 257, 10, 256, *b"assistant\n"]),
    ],
)
def test_texts_and_chats_are_tokenized(body: dict[str, Any], tokens: list[int]) -> None:
    found = Server().post("/tokenize", body).json()
    assert found == {"count": len(tokens), "max_model_len": 512, "tokens": tokens, "token_strs": None}


def test_tokens_have_texts_on_demand() -> None:
    found = Server().post("/tokenize", {"prompt": "Hi", "return_token_strs": True}).json()
    assert found["token_strs"] == ["H", "i"]


@pytest.mark.parametrize(
    "body", [{}, chat() | {"prompt": "Hi"}, {"prompt": 3}, {"prompt": "Hi", "model": "gpt"}]
)
def test_what_cannot_be_tokenized_is_refused(body: dict[str, Any]) -> None:
    assert Server().post("/tokenize", body).status in (400, 404)


def test_tokens_are_text_again() -> None:
    answer = Server().post("/detokenize", {"tokens": [256, 72, 105]})
    assert answer.json() == {"prompt": "<|im_start|>Hi"}
    assert Server().post("/detokenize", {"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize("tokens", [["a"], [[1]], [True], [-1], [258], [2**40], "abc", None])
def test_what_are_no_tokens_is_refused(tokens: Any) -> None:
    answer = Server().post("/detokenize", {"tokens": tokens})
    assert (answer.status, answer.error["param"]) == (400, "tokens")


def test_a_request_that_runs_is_seen_and_can_be_cancelled() -> None:
    server = Server(ScriptedLLM(Script(["a"], waits=True)))

    async def run() -> None:
        exchange = server.open("/v1/chat/completions", chat(stream=True), {"x-tenant": "t1"})
        await until(lambda: b'"a"' in exchange.answer.body)
        for tenant, seen in (("t1", 1), ("t2", 0), ("boss", 1)):
            listed = await server.ask("GET", REQUESTS, None, {"x-tenant": tenant})
            assert len(listed.json()["data"]) == seen
        listed = await server.ask("GET", REQUESTS, None, {"x-tenant": "t1"})
        (one,) = listed.json()["data"]
        assert (one["tenant"], one["state"], one["prompt_tokens"]) == ("t1", "decode", 21)
        stranger = await server.ask("DELETE", f"{REQUESTS}/{one['id']}", None, {"x-tenant": "t2"})
        assert stranger.status == 404
        cancelled = await server.ask("DELETE", f"{REQUESTS}/{one['id']}", None, {"x-tenant": "t1"})
        assert cancelled.json() == {"id": one["id"], "object": "kvfold.request", "cancelled": True}
        answer = await exchange.end()
        assert json.loads(events(answer)[-1][1])["error"]["code"] == "cancelled"
        again = await server.ask("DELETE", f"{REQUESTS}/{one['id']}", None, {"x-tenant": "t1"})
        assert again.status == 404

    asyncio.run(run())


@pytest.mark.parametrize("name", ["x", "-1", "9" * 5000, "%00"])
def test_no_request_of_that_name_runs(name: str) -> None:
    assert asyncio.run(Server().ask("DELETE", f"{REQUESTS}/{name}")).status == 404
