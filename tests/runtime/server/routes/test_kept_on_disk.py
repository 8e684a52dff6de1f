"""Sessions and stored responses with a folder: a server goes on with what another one left in it."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kvfold.runtime.server.routes.conversations import ConversationLimits
from kvfold.runtime.sessions.session_store import SessionStore
from tests.runtime.byte_tokenizer import ByteTokenizer
from tests.runtime.server.asgi_client import Answer, until
from tests.runtime.server.routes.ask_server import Server, chat
from tests.runtime.server.routes.scripted_llm import Script, ScriptedLLM

CHAT, RESPONSES, SESSIONS = "/v1/chat/completions", "/v1/responses", "/v1/kvfold/sessions"
S1 = {"x-session-id": "s1"}
REPLY = Script(["Hé", "llo"], more={"token_ids": [*"Héllo".encode(), 257]})


def start(folder: Path, *scripts: Script, **limits: Any) -> Server:
    """A server of its own over the folder, as after a kill: nobody said good-bye."""
    return Server(ScriptedLLM(*(scripts or (REPLY,))), ConversationLimits(folder=folder, **limits))


def call(server: Server, method: str, path: str, value: Any = None, **headers: str) -> Answer:
    return asyncio.run(server.ask(method, path, value, headers))


def tokens(server: Server, at: int = -1) -> list[int]:
    ids: list[int] = server.llm.asked[at][0].token_ids.tolist()
    return ids


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def failures(server: Server) -> dict[str, int]:
    return dict(server.state.metrics.files)


def test_a_session_goes_on_after_a_restart_from_the_very_tokens(tmp_path: Path) -> None:
    first = start(tmp_path)
    first.post(CHAT, chat("Hi"), S1)
    said = [*tokens(first), *"Héllo".encode(), 257]
    again = start(tmp_path)
    view = call(again, "GET", f"{SESSIONS}/s1").json()
    assert (view["turns"], view["tokens"], view["saved"]) == (1, len(said), True)
    again.post(CHAT, chat("Hi", "Héllo", "And?"), S1)
    assert tokens(again)[: len(said)] == said
    third = start(tmp_path)
    assert call(third, "GET", f"{SESSIONS}/s1").json()["turns"] == 2
    assert [path.stat().st_mode & 0o777 for path in files(tmp_path)] == [0o600]


def test_a_session_without_a_turn_and_one_that_was_deleted_are_as_they_were(tmp_path: Path) -> None:
    first = start(tmp_path)
    assert call(first, "POST", SESSIONS, {"session_id": "a"}).status == 201
    first.post(CHAT, chat(), S1)
    assert call(first, "DELETE", f"{SESSIONS}/s1").status == 200
    again = start(tmp_path)
    assert [one["id"] for one in call(again, "GET", SESSIONS).json()["data"]] == ["a"]
    assert call(again, "POST", SESSIONS, {"session_id": "a"}).status == 409
    assert call(again, "GET", f"{SESSIONS}/s1").status == 404
    assert len(files(tmp_path)) == 1, "what is deleted leaves no file"


def test_a_response_goes_on_after_a_restart(tmp_path: Path) -> None:
    first = start(tmp_path)
    body = first.post(RESPONSES, {"input": "Hi", "metadata": {"a": "b"}}).json()
    said = [*tokens(first), *"Héllo".encode(), 257]
    again = start(tmp_path)
    assert call(again, "GET", f"{RESPONSES}/{body['id']}").json() == body
    later = again.post(RESPONSES, {"input": "And?", "previous_response_id": body["id"]})
    assert later.status == 200 and tokens(again)[: len(said)] == said
    assert call(again, "DELETE", f"{RESPONSES}/{body['id']}").status == 200
    third = start(tmp_path)
    assert call(third, "GET", f"{RESPONSES}/{body['id']}").status == 404
    assert call(third, "GET", f"{RESPONSES}/{later.json()['id']}").status == 200


def test_a_response_that_is_deleted_while_it_runs_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reply ends before a disk that is busy has come to the deletion."""
    server, delete = start(tmp_path, Script(waits=True)), SessionStore.delete

    def late(*asked: Any) -> None:
        time.sleep(0.1)
        delete(*asked)

    async def work() -> None:
        exchange = server.open(RESPONSES, {"input": "Hi", "stream": True})
        await until(lambda: b'"id":"' in exchange.answer.body)
        name = exchange.answer.body.split(b'"id":"')[1].split(b'"')[0].decode()
        assert (await server.ask("DELETE", f"{RESPONSES}/{name}")).status == 200
        await exchange.end()

    monkeypatch.setattr(SessionStore, "delete", late)
    asyncio.run(work())
    assert files(tmp_path) == []


def test_what_a_client_heard_the_end_of_is_on_disk(tmp_path: Path) -> None:
    """Looked at from another server, at the very moment when the last event comes."""

    async def listen(server: Server, path: str, body: Any, look: Callable[[bytes], Awaitable[None]]) -> None:
        exchange = server.open(path, body, S1)
        await until(lambda: any(word in exchange.answer.body for word in (b"response.completed", b"[DONE]")))
        await look(exchange.answer.body)
        await exchange.end()

    async def session(_: bytes) -> None:
        assert (await start(tmp_path).ask("GET", f"{SESSIONS}/s1")).json()["turns"] == 1

    async def response(told: bytes) -> None:
        name = told.split(b'"id":"')[1].split(b'"')[0].decode()
        assert (await start(tmp_path).ask("GET", f"{RESPONSES}/{name}")).json()["status"] == "completed"

    asyncio.run(listen(start(tmp_path), CHAT, chat(stream=True), session))
    asyncio.run(listen(start(tmp_path), RESPONSES, {"input": "Hi", "stream": True}, response))


def test_another_tenant_finds_nothing(tmp_path: Path) -> None:
    first = start(tmp_path)
    first.post(CHAT, chat("a secret"), S1 | {"x-tenant": "a"})
    name = first.post(RESPONSES, {"input": "a secret"}, {"x-tenant": "a"}).json()["id"]
    again = start(tmp_path)
    for path in (f"{SESSIONS}/s1", f"{RESPONSES}/{name}"):
        assert call(again, "GET", path, **{"x-tenant": "b"}).status == 404
        assert call(again, "DELETE", path, **{"x-tenant": "b"}).status == 404
    again.post(CHAT, chat("Hi"), S1 | {"x-tenant": "b"})
    assert tokens(again) == tokens(start_fresh())
    assert call(again, "GET", SESSIONS, **{"x-tenant": "b"}).json()["data"][0]["turns"] == 1
    assert len(call(again, "GET", SESSIONS, **{"x-tenant": "boss"}).json()["data"]) == 2
    assert call(again, "GET", f"{SESSIONS}/s1", **{"x-tenant": "a"}).json()["turns"] == 1


def start_fresh() -> Server:
    """One that was asked `Hi` without a session."""
    server = Server(ScriptedLLM(REPLY))
    server.post(CHAT, chat("Hi"))
    return server


def test_a_file_that_was_renamed_to_another_tenant_s_name_is_refused(tmp_path: Path) -> None:
    first = start(tmp_path)
    for tenant in ("a", "b"):
        first.post(CHAT, chat("a secret"), S1 | {"x-tenant": tenant})
    one, other = files(tmp_path)
    one.replace(other)
    again = start(tmp_path)
    for tenant in ("a", "b"):
        assert call(again, "GET", f"{SESSIONS}/s1", **{"x-tenant": tenant}).status == 404
    again.post(CHAT, chat("Hi"), S1 | {"x-tenant": "b"})
    again.post(CHAT, chat("Hi"), S1 | {"x-tenant": "a"})
    assert tokens(again, 0) == tokens(again, 1) == tokens(start_fresh())
    assert failures(again)["refused"] > 0


def test_counts_and_ages_hold_over_a_restart(tmp_path: Path) -> None:
    first = start(tmp_path, max_sessions=2)
    for name in ("a", "b"):
        first.post(CHAT, chat(), {"x-session-id": name})
    again = start(tmp_path, max_sessions=2)
    again.post(CHAT, chat(), {"x-session-id": "c"})
    assert [one["id"] for one in call(again, "GET", SESSIONS).json()["data"]] == ["b", "c"]
    assert len(files(tmp_path)) == 2
    for path in files(tmp_path):
        os.utime(path, (time.time() - 100, time.time() - 100))
    late = start(tmp_path, seconds=50.0)
    asyncio.run(asyncio.sleep(0.6))  # it looks a hundred times within what they are kept for
    assert call(late, "GET", SESSIONS).json()["data"] == []
    assert files(tmp_path) == []


def test_two_servers_take_turns_and_never_run_one_session_at_once(tmp_path: Path) -> None:
    waits = Script(["a"], waits=True)
    one, two = start(tmp_path, REPLY, waits, REPLY), start(tmp_path, REPLY)

    async def both() -> None:
        await one.ask("POST", CHAT, chat("Hi"), S1)
        await two.ask("POST", CHAT, chat("Hi", "Héllo", "Two"), S1)
        said = [*tokens(two), *"Héllo".encode(), 257]
        exchange = one.open(CHAT, chat("Hi", "Héllo", "Two", "Héllo", "Three", stream=True), S1)
        await until(lambda: one.llm.running)
        assert tokens(one)[: len(said)] == said, "it goes on from the other's turn"
        for method, path, value in (("POST", CHAT, chat()), ("DELETE", f"{SESSIONS}/s1", None)):
            refused = await two.ask(method, path, value, S1)
            assert (refused.status, refused.error["code"]) == (409, "session_busy")
        exchange.leave()
        await exchange.end()
        assert (await two.ask("POST", CHAT, chat("Hi", "Héllo", "Two", "Héllo", "4"), S1)).status == 200
        assert (await one.ask("GET", f"{SESSIONS}/s1")).json()["turns"] == 3
        assert (await two.ask("DELETE", f"{SESSIONS}/s1")).status == 200
        assert (await one.ask("GET", f"{SESSIONS}/s1")).status == 404, "deleted there, gone here"

    asyncio.run(both())
    assert files(tmp_path) == []


def test_a_turn_that_is_refused_leaves_the_session_free(tmp_path: Path) -> None:
    """Also without a folder: a wrong model's name is found out after the turn began."""
    for server in (Server(ScriptedLLM(REPLY)), start(tmp_path)):
        for _ in range(2):
            assert server.post(CHAT, chat(model="another"), S1).status == 404
        assert server.post(CHAT, chat(), S1).status == 200


class OtherTokenizer(ByteTokenizer):
    fingerprint = "another"


def test_another_model_s_tokens_are_not_gone_on_from_and_texts_are(tmp_path: Path) -> None:
    first = start(tmp_path)
    first.post(CHAT, chat("Hi"), S1)
    name = first.post(RESPONSES, {"input": "Hi"}).json()["id"]
    again = start(tmp_path)
    again.llm.tokenizer = OtherTokenizer()
    again.post(RESPONSES, {"input": "And?", "previous_response_id": name})
    fresh = Server(ScriptedLLM(REPLY))
    fresh.post(CHAT, chat("Hi", "Héllo", "And?"))
    assert tokens(again) == tokens(fresh), "its texts, computed again"
    again.post(CHAT, chat("Hi", "Héllo", "And?"), S1)
    assert tokens(again) == tokens(fresh)
    assert call(again, "GET", f"{SESSIONS}/s1").json()["saved"], "from now on it is this model's"


def test_a_file_cut_in_its_last_turn_is_the_session_before_it(tmp_path: Path) -> None:
    first = start(tmp_path)
    first.post(CHAT, chat("Hi"), S1)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    first.post(CHAT, chat("Hi", "Héllo", "And?"), S1)
    for cut in (len(whole) + 1, path.stat().st_size - 1):
        data = path.read_bytes()
        path.write_bytes(data[:cut])
        again = start(tmp_path)
        view = call(again, "GET", f"{SESSIONS}/s1").json()
        assert (view["turns"], failures(again)["cut"]) == (1, 1)
        path.write_bytes(data)


def test_a_response_whose_file_was_cut_anywhere_is_there_or_not(tmp_path: Path) -> None:
    body = start(tmp_path).post(RESPONSES, {"input": "Hi"}).json()
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for cut in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert call(start(tmp_path), "GET", f"{RESPONSES}/{body['id']}").status == 404
    path.write_bytes(whole)
    assert call(start(tmp_path), "GET", f"{RESPONSES}/{body['id']}").json() == body


def test_two_first_turns_of_one_session_at_once_are_one_turn_and_one_refusal(tmp_path: Path) -> None:
    server = start(tmp_path)

    async def both() -> list[Answer]:
        return await asyncio.gather(*(server.ask("POST", CHAT, chat(), S1) for _ in range(2)))

    answers = asyncio.run(both())
    assert sorted(answer.status for answer in answers) == [200, 409]
    (refused,) = [answer for answer in answers if answer.status == 409]
    assert refused.error["code"] == "session_busy"


def test_servers_that_share_a_folder_lose_no_turn(tmp_path: Path) -> None:
    servers, draw = [start(tmp_path) for _ in range(3)], random.Random(3)
    done = Counter[str]()

    async def ask(name: str) -> None:
        await asyncio.sleep(draw.uniform(0, 0.3))
        answer = await draw.choice(servers).ask("POST", CHAT, chat(), {"x-session-id": name})
        assert answer.status == 200 or answer.error["code"] == "session_busy"
        done[name] += answer.status == 200

    async def hammer() -> None:
        await asyncio.gather(*(ask(draw.choice("abc")) for _ in range(200)))

    asyncio.run(hammer())
    for server in (*servers, start(tmp_path)):
        views = call(server, "GET", SESSIONS).json()["data"]
        assert {view["id"]: view["turns"] for view in views} == done
    assert sum(done.values()) > len(done), "sessions went on"
