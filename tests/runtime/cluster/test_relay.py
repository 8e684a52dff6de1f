"""A relay over replicas with real sockets: one dies, and the client reads one stream, the same as ever."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.cluster.local_cluster import KEY, LocalCluster, local_cluster
from tests.runtime.cluster.stream_story import stream_story
from tests.runtime.cluster.tiny_replica import TinyReplica
from tests.runtime.server.asgi_client import JSON, Answer, Exchange, until

QUESTION = [{"role": "user", "content": "tell me a long story"}]
SAMPLED = {"max_tokens": 40, "stream": True, "temperature": 0.8, "top_p": 0.9, "seed": 7}
CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": QUESTION, **SAMPLED}),
    "greedy": (CHAT, {"messages": QUESTION, "max_tokens": 40, "stream": True, "temperature": 0}),
    "penalties": (
        CHAT,
        {
            **{"messages": QUESTION, **SAMPLED, "repetition_penalty": 1.3, "frequency_penalty": 1.5},
            **{"presence_penalty": 0.5, "min_tokens": 30, "stop": ["zz", "\u0004"], "top_k": 50},
        },
    ),
    "log probabilities": (CHAT, {"messages": QUESTION, **SAMPLED, "logprobs": True, "top_logprobs": 2}),
    "two replies": (CHAT, {"messages": QUESTION, **SAMPLED, "n": 2}),
    "schema": (
        CHAT,
        {
            **{"messages": QUESTION, **SAMPLED, "max_tokens": 80},
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "x",
                    "schema": {
                        "type": "object",
                        "properties": {"a": {"type": "string", "pattern": "^[a-z]{20,30}$"}},
                        **{"required": ["a"], "additionalProperties": False},
                    },
                },
            },
        },
    ),
    "tools": (
        CHAT,
        {
            **{"messages": QUESTION, **SAMPLED, "max_tokens": 80, "tools": [TOOL]},
            "tool_choice": "required",
        },
    ),
    "completion": ("/v1/completions", {"prompt": ["once", "upon a time"], **SAMPLED, "echo": True}),
    "completion with log probabilities": ("/v1/completions", {"prompt": "once", **SAMPLED, "logprobs": 1}),
    "response": (
        "/v1/responses",
        {"input": "once", "stream": True, "max_output_tokens": 40, "temperature": 0},
    ),
    "message": ("/v1/messages", {"messages": QUESTION, "max_tokens": 40, "stream": True, "temperature": 0}),
}


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 100)

    asyncio.run(limited())


def begin(cluster: LocalCluster, path: str, value: Any, headers: dict[str, str] | None = None) -> Exchange:
    sent = {**JSON, "host": "localhost", **(headers or {})}
    return Exchange(cluster.relay, "POST", path, json.dumps(value).encode(), sent)


async def post(cluster: LocalCluster, path: str, value: Any, headers: dict[str, str] | None = None) -> Answer:
    return await begin(cluster, path, value, headers).end()


@pytest.mark.parametrize("name", ASKED)
def test_a_stream_goes_on_on_another_replica_to_the_letter(tmp_path: Path, name: str) -> None:
    path, value = ASKED[name]

    async def test() -> None:
        async with local_cluster(tmp_path, replicas=5) as cluster:
            whole = stream_story((await post(cluster, path, value)).body)
            for steps in (0, 2, 9, 23):
                exchange = begin(cluster, path, value)
                await cluster.kill_after(steps)
                assert stream_story((await exchange.end()).body) == whole

    run(test)


def test_items_and_calls_of_a_response_keep_their_names(tmp_path: Path) -> None:
    tool = {"type": "function", "name": "find", "parameters": {"type": "object"}}
    value = {"input": "once", "tools": [tool], "tool_choice": "required", "stream": True, "temperature": 0}

    async def test() -> None:
        async with local_cluster(tmp_path) as cluster:
            exchange = begin(cluster, "/v1/responses", {**value, "max_output_tokens": 80})
            await cluster.kill_after(50)
            told = (await exchange.end()).body.decode()
            for name in ("call_id", "item_id"):
                assert len(set(re.findall(f'"{name}":"([^"]+)"', told))) == 1
            numbers = [int(number) for number in re.findall(r'"sequence_number":(\d+)', told)]
            assert numbers == list(range(len(numbers)))

    run(test)


def test_a_stream_survives_one_death_after_the_other(tmp_path: Path) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path, replicas=4) as cluster:
            whole = await post(cluster, *ASKED["chat"])
            exchange = begin(cluster, *ASKED["chat"])
            for _ in range(3):
                await cluster.kill_after(8)
            assert stream_story((await exchange.end()).body) == stream_story(whole.body)

    run(test)


@pytest.mark.parametrize("form", [{}, {"guided_regex": "[a-z]{4}|[A-Z]{70}"}], ids=["text", "grammar"])
def test_a_reply_that_has_ended_stays_so_where_another_of_its_stream_goes_on(
    tmp_path: Path, form: dict[str, str]
) -> None:
    value = {"messages": QUESTION, **SAMPLED, **form, "n": 4, "stop": ["e"], "max_tokens": 120}

    async def test() -> None:
        async with local_cluster(tmp_path, replicas=3) as cluster:
            whole = stream_story((await post(cluster, CHAT, value)).body)
            for steps in (45, 55):
                exchange = begin(cluster, CHAT, value)
                await cluster.kill_after(steps)
                assert b'finish_reason":"' in exchange.answer.body
                assert stream_story((await exchange.end()).body) == whole

    run(test)


def test_a_stream_whose_last_token_was_told_is_ended_by_the_next_replica(tmp_path: Path) -> None:
    relayed = {"id": "0" * 32, "created": 1, "seed": 1}
    value = {**ASKED["greedy"][1], "max_tokens": 3, "ignore_eos": True}

    async def test() -> None:
        async with local_cluster(tmp_path, replicas=1) as cluster:

            async def told(said: list[Any] | None) -> bytes:
                sent = {**JSON, "host": "localhost", "x-kvfold-relay": KEY}
                content = json.dumps({**value, "kvfold_relay": {**relayed, "said": said}}).encode()
                app = cluster.replicas["r0"].served.app
                return (await Exchange(app, "POST", CHAT, content, sent).end()).body

            notes = re.findall(rb'"ids":(\[[^]]+\])', await told(None))
            rest = await told([[json.loads(ids) for ids in notes]])
            assert stream_story(rest)[0][-2]["choices"] == [
                {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
            ]
            assert rest.endswith(b'data: [DONE]\n\n: kvfold {"ended":true,"end":true}\n\n')

    run(test)


def test_a_whole_reply_is_asked_for_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path) as cluster:
            value = {**ASKED["chat"][1], "stream": False}
            whole = await post(cluster, CHAT, value)
            exchange = begin(cluster, CHAT, value)
            await cluster.kill_after(9)
            answer = await exchange.end()
            assert answer.status == 200
            assert answer.json()["choices"] == whole.json()["choices"]

    run(test)


def test_a_sessions_turn_goes_on_with_the_tokens_that_its_replica_had_read(tmp_path: Path) -> None:
    """Its replies are no text that reads as the same tokens, and the session died with its replica."""
    turn = {"messages": QUESTION, "max_tokens": 24, "temperature": 0, "ignore_eos": True, "stream": True}

    async def turns(cluster: LocalCluster, name: str, kill: bool) -> dict[int, list[Any]]:
        first = await post(cluster, CHAT, {**turn, "stream": False}, {"x-session-id": name})
        said = first.json()["choices"][0]["message"]["content"]
        more = [*QUESTION, {"role": "assistant", "content": said}, {"role": "user", "content": "go on"}]
        exchange = begin(cluster, CHAT, {**turn, "messages": more}, {"x-session-id": name})
        if kill:
            await cluster.kill_after(9)
        return stream_story((await exchange.end()).body)

    async def test() -> None:
        async with local_cluster(tmp_path) as cluster:
            assert await turns(cluster, "quiet", kill=False) == await turns(cluster, "killed", kill=True)

    run(test)


def test_conversations_stay_and_their_prompts_are_found(tmp_path: Path) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path, replicas=3) as cluster:
            for number in range(6):
                begun = [{"role": "user", "content": f"conversation {number} about nothing at all"}]
                await post(cluster, CHAT, {"messages": begun, "max_tokens": 4, "temperature": 0})
                more = [*begun, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
                answer = await post(cluster, CHAT, {"messages": more, "max_tokens": 4, "temperature": 0})
                assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 32
            assert sum(bool(one.asked) for one in cluster.replicas.values()) > 1

    run(test)


def test_when_all_are_busy_the_client_is_told_when_to_come_again(tmp_path: Path) -> None:
    async def test() -> None:
        load = TinyReplica(pause=0.02)
        async with local_cluster(tmp_path, 2, load, max_waiting=0) as cluster:
            running = [begin(cluster, CHAT, {**ASKED["greedy"][1], "ignore_eos": True}) for _ in range(24)]
            answers = [await one.end() for one in running]
            refused = [one for one in answers if one.status == 429]
            assert 0 < len(refused) < 24 and all(int(one.headers["retry-after"]) >= 1 for one in refused)
            assert all(one.error["code"] == "busy" for one in refused)
            assert sum(one.status == 200 for one in answers) == 16  # both were full before any was refused

    run(test)


def test_without_any_replica_the_client_is_told_so_and_a_stream_ends_with_an_error(tmp_path: Path) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path, replicas=1, patience=0.5) as cluster:
            exchange = begin(cluster, *ASKED["chat"])
            await until(lambda: len(exchange.answer.parts) > 2)
            cluster.replicas["r0"].kill()
            cut = await exchange.end()
            assert json.loads(cut.body.split(b"data: ")[-1])["error"]["code"] == "no_replica"
            refused = await post(cluster, *ASKED["chat"])
            assert (refused.status, refused.headers["retry-after"]) == (503, "5")

    run(test)


def test_a_client_that_leaves_ends_its_reply_and_gives_its_place_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path) as cluster:
            exchange = begin(cluster, CHAT, {**ASKED["greedy"][1], "max_tokens": 1500, "ignore_eos": True})
            await until(lambda: len(exchange.answer.parts) > 2)
            (replica,) = cluster.busy()
            exchange.leave()
            await exchange.end()
            assert not replica.places
            async with asyncio.timeout(5):
                while replica.served.scaling_stats()["replies"]:
                    await asyncio.sleep(0.01)

    run(test)


def test_errors_pass_as_they_are(tmp_path: Path) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path) as cluster:
            wrong = await post(cluster, CHAT, {"messages": QUESTION, "temperature": -1})
            assert (wrong.status, wrong.error["param"]) == (400, "temperature")
            long = await post(cluster, CHAT, {"x": "y" * 9_000_000})
            assert long.status == 413
            elsewhere = await post(cluster, CHAT, {"messages": QUESTION}, {"host": "evil.example"})
            assert elsewhere.status == 403

    run(test)


def test_a_client_cannot_speak_as_the_relay(tmp_path: Path) -> None:
    told = {"id": "0" * 32, "created": 1, "seed": 1, "said": [[[5, 6]]]}
    liar = {"messages": QUESTION, "max_tokens": 4, "temperature": 0, "kvfold_relay": told}

    async def test() -> None:
        async with local_cluster(tmp_path, replicas=1) as cluster:
            honest = (await post(cluster, CHAT, {**liar, "kvfold_relay": None})).json()
            odd = (await post(cluster, CHAT, {**liar, "previous_response_id": 5})).json()
            assert odd["choices"] == honest["choices"] and told["id"] not in odd["id"]
            assert (await post(cluster, "/v1/x/../chat/completions", liar)).status == 404
            assert (await post(cluster, "@127.0.0.1/", liar)).status == 400

    run(test)


def test_replicas_are_named_to_whom_they_would_tell_their_metrics(tmp_path: Path) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path) as cluster:
            exchange = Exchange(cluster.relay, "GET", "/v1/kvfold/replicas", b"", {"host": "localhost"})
            (group,) = (await exchange.end()).json()
            assert group["targets"] == sorted(await cluster.addresses())
            stranger = Exchange(cluster.relay, "GET", "/v1/kvfold/replicas", b"", {"host": "evil.example"})
            assert (await stranger.end()).status == 403

    run(test)


def test_a_replica_behind_a_relay_answers_nobody_else(tmp_path: Path) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path, replicas=1) as cluster:
            app = cluster.replicas["r0"].served.app
            sent = {**JSON, "host": "localhost"}
            stranger = await Exchange(app, "POST", CHAT, b'{"messages": []}', sent).end()
            assert stranger.status == 403 and "relay" in stranger.error["message"]
            liar = await Exchange(app, "GET", "/v1/models", b"", {**sent, "x-kvfold-relay": "no"}).end()
            assert liar.status == 503

    run(test)
