"""Sessions: a conversation's tokens stay as the model produced them, and its pages wait for the next turn."""

from __future__ import annotations

import asyncio
from typing import Any

from kvfold.runtime.server.routes.conversations import ConversationLimits
from tests.runtime.server.asgi_client import Answer, until
from tests.runtime.server.routes.ask_server import Server, chat
from tests.runtime.server.routes.scripted_llm import Script, ScriptedLLM

PATH, SESSIONS = "/v1/chat/completions", "/v1/kvfold/sessions"
S1 = {"x-session-id": "s1"}


def call(server: Server, method: str, name: str = "", value: Any = None, **headers: str) -> Answer:
    return asyncio.run(server.ask(method, SESSIONS + name, value, headers))


def tokens(server: Server, at: int) -> list[int]:
    ids: list[int] = server.llm.asked[at][0].token_ids.tolist()
    return ids


def test_a_turn_goes_on_from_the_tokens_and_pages_of_the_last() -> None:
    server = Server(ScriptedLLM(Script(["Hé", "llo"], more={"token_ids": [*"Héllo".encode(), 257]})))
    server.post(PATH, chat("Hi"), S1)
    server.post(PATH, chat("Hi", "Héllo", "And?"), S1)
    said = [*tokens(server, 0), *"Héllo".encode(), 257]
    assert tokens(server, 1)[: len(said)] == said
    assert server.llm.asked[1][0].kept is server.llm.replies[0].kept is not None
    view = call(server, "GET", "/s1").json()
    assert (view["turns"], view["rematched"], view["busy"]) == (2, 0, False)
    assert view["tokens"] == len(tokens(server, 1)) + len("Héllo".encode()) + 1


def test_a_token_that_the_model_chose_stays_though_its_text_is_another_s() -> None:
    """The tokenizer would write the reply's text otherwise: as bytes, not as the one token it was."""
    server = Server(ScriptedLLM(Script(["<|im_end|>"], more={"token_ids": [257, 257]})))
    server.post(PATH, chat("Hi"), S1)
    server.post(PATH, chat("Hi", "", "And?"), S1)
    server.post(PATH, chat("Hi", "", "And?"))
    kept, fresh = tokens(server, 1), tokens(server, 2)
    assert kept != fresh or server.llm.asked[1][0].kept is not None


def test_messages_that_do_not_go_on_are_looked_up_and_counted() -> None:
    server = Server()
    server.post(PATH, chat("Hi"), S1)
    answer = server.post(PATH, chat("Something else"), S1)
    assert answer.status == 200
    assert call(server, "GET", "/s1").json()["rematched"] == 1


def test_a_session_may_be_named_in_the_body_and_by_every_chat_api() -> None:
    server = Server()
    server.post(PATH, chat(session_id="s1"))
    server.post("/v1/responses", {"input": "Hi", "store": False}, S1)
    server.post("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}, S1)
    assert call(server, "GET", "/s1").json()["turns"] == 3


def test_one_turn_at_a_time() -> None:
    server = Server(ScriptedLLM(Script(["a"], waits=True)))

    async def two() -> Answer:
        exchange = server.open(PATH, chat(stream=True), S1)
        await until(lambda: server.llm.running)
        second = await server.ask("POST", PATH, chat(), S1)
        held = await server.ask("DELETE", f"{SESSIONS}/s1")
        assert (held.status, held.error["code"]) == (409, "session_busy")
        exchange.leave()
        await exchange.end()
        return second

    second = asyncio.run(two())
    assert (second.status, second.error["code"]) == (409, "session_busy")


def test_a_turn_whose_client_left_is_undone() -> None:
    server = Server(ScriptedLLM(Script(["a"], waits=True), Script(["b"])))

    async def leave() -> None:
        exchange = server.open(PATH, chat(stream=True), S1)
        await until(lambda: b'"a"' in exchange.answer.body)
        exchange.leave()
        await exchange.end()

    asyncio.run(leave())
    assert call(server, "GET", "/s1").json()["turns"] == 0
    assert server.post(PATH, chat(), S1).status == 200
    assert call(server, "GET", "/s1").json()["turns"] == 1


def test_a_turn_that_is_refused_keeps_the_pages_of_the_last() -> None:
    server = Server()
    server.post(PATH, chat("Hi"), S1)
    kept = server.llm.replies[0].kept
    assert server.post(PATH, chat("x" * 600), S1).status == 400
    assert server.post(PATH, chat(n=2), S1).error["param"] == "n"
    server.llm.refuses = MemoryError()
    assert server.post(PATH, chat("Hi", "Hello wörld!", "a"), S1).status == 500
    server.llm.refuses = None
    server.post(PATH, chat("Hi", "Hello wörld!", "a"), S1)
    assert server.llm.asked[1][0].kept is kept


def test_sessions_are_made_listed_and_deleted() -> None:
    server = Server()
    made = call(server, "POST")
    assert (made.status, made.json()["object"]) == (201, "kvfold.session")
    assert call(server, "POST", "", {"session_id": "s1"}).json()["id"] == "s1"
    assert call(server, "POST", "", {"session_id": "s1"}).status == 409
    assert [one["id"] for one in call(server, "GET").json()["data"]] == [made.json()["id"], "s1"]
    server.post(PATH, chat(), S1)
    assert call(server, "DELETE", "/s1").json()["deleted"]
    assert server.llm.discarded == [server.llm.replies[0].kept]
    assert call(server, "GET", "/s1").status == call(server, "DELETE", "/s1").status == 404


def test_a_session_is_its_tenant_s_and_an_admin_sees_them_all() -> None:
    server = Server()
    for tenant in ("a", "b"):
        call(server, "POST", "", {"session_id": "s"}, **{"x-tenant": tenant})
    assert call(server, "GET", "/s", **{"x-tenant": "c"}).status == 404
    for tenant, seen in (("a", 1), ("c", 0), ("boss", 2)):
        assert len(call(server, "GET", **{"x-tenant": tenant}).json()["data"]) == seen


def test_too_many_sessions_push_out_the_one_that_is_longest_unused() -> None:
    server = Server(limits=ConversationLimits(max_sessions=2))
    for name in ("a", "b", "a", "c"):
        server.post(PATH, chat(), {"x-session-id": name})
    assert [one["id"] for one in call(server, "GET").json()["data"]] == ["a", "c"]
    assert server.llm.discarded == [server.llm.replies[1].kept]


def test_sessions_that_are_all_busy_leave_no_room() -> None:
    server = Server(ScriptedLLM(Script(waits=True)), ConversationLimits(max_sessions=1))

    async def two() -> Answer:
        exchange = server.open(PATH, chat(stream=True), S1)
        await until(lambda: server.llm.running)
        second = await server.ask("POST", PATH, chat(), {"x-session-id": "s2"})
        exchange.leave()
        await exchange.end()
        return second

    assert asyncio.run(two()).status == 429


def test_an_unused_session_is_forgotten_and_its_pages_given_back() -> None:
    server = Server(limits=ConversationLimits(seconds=0.0))
    server.post(PATH, chat(), S1)
    assert call(server, "GET").json()["data"] == []
    assert server.llm.discarded == [server.llm.replies[0].kept]
