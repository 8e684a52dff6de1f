"""One request: what its outcome says of replies, refusals, breaks and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from time import perf_counter
from typing import TypeVar

import pytest

from kvfold.pipeline.bench.serving.client.asks import COMPLETIONS, Ask, Chat, Wanted, chat_turn, completion
from kvfold.pipeline.bench.serving.client.load_client import LoadClient, open_client
from kvfold.pipeline.bench.serving.client.outcome import Outcome
from kvfold.pipeline.bench.serving.servers.started_server import free_port
from kvfold.plugins.contract.errors import TargetError
from tests.pipeline.bench.serving.fake_openai_server import FakeServer, serving, words_of

Result = TypeVar("Result")


def with_client(server: FakeServer, use: Callable[[LoadClient], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with serving(server) as url, open_client(url) as client:
            await client.find_model()
            return await use(client)

    return asyncio.run(run())


def send(server: FakeServer, ask: Ask) -> Outcome:
    return with_client(server, lambda client: client.send(ask, perf_counter()))


@pytest.mark.parametrize("stream", [True, False])
def test_a_completion_is_whole_and_counted(stream: bool) -> None:
    server = FakeServer()
    outcome = send(server, completion([5, 6, 7, 8], Wanted(6, stream)))
    assert (outcome.ending, outcome.status, outcome.finish_reason) == ("complete", 200, "length")
    assert outcome.text == "".join(words_of(6, 0))
    assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.completion_tokens) == (4, 2, 6)
    assert len(outcome.arrivals) == (6 if stream else 1)
    (body,) = server.bodies
    assert body["prompt"] == [5, 6, 7, 8]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("fake", 6, 0.0)
    assert body.get("stream_options") == ({"include_usage": True} if stream else None)


def test_times_are_those_of_the_pieces() -> None:
    start = perf_counter()
    outcome = send(FakeServer(delay=0.05), completion("go", Wanted(4)))
    assert outcome.first_token is not None and outcome.first_token >= 0.05
    assert all(gap >= 0.03 for gap in outcome.gaps) and len(outcome.gaps) == 3
    assert outcome.token_time == pytest.approx(sum(outcome.gaps) / 3)
    assert outcome.seconds >= 0.2
    assert start < outcome.arrivals[0] < outcome.arrivals[-1] <= outcome.ended


def test_latency_counts_from_when_it_was_due() -> None:
    async def late(client: LoadClient) -> Outcome:
        return await client.send(completion("go", Wanted(1)), perf_counter() - 10)

    outcome = with_client(FakeServer(), late)
    assert outcome.first_token is not None
    assert 10 <= outcome.first_token <= outcome.seconds < 20


@pytest.mark.parametrize(
    ("wish", "ending", "status", "trouble"),
    [
        ("break", "broken", 200, ""),
        ("error", "broken", 200, "error in the stream: the engine failed"),
        ("no finish", "broken", 200, "no finish_reason"),
        ("no done", "broken", 200, "no [DONE]"),
        ("page", "broken", 200, "no finish_reason"),
        ("fault", "refused", 500, "oops"),
    ],
)
def test_what_is_not_whole_is_told(wish: str, ending: str, status: int, trouble: str) -> None:
    outcome = send(FakeServer(), completion(wish, Wanted(4)))
    assert (outcome.ending, outcome.status) == (ending, status)
    assert outcome.trouble.startswith(trouble) and outcome.trouble
    if wish in ("break", "error"):
        assert outcome.text == "".join(words_of(2, 0))


def test_a_page_that_is_no_json_is_told() -> None:
    outcome = send(FakeServer(), completion("page", Wanted(4, stream=False)))
    assert outcome.ending == "broken"
    assert outcome.trouble.startswith("not OpenAI's API")


def test_a_refusal_says_why_and_when_to_come_again() -> None:
    outcome = send(FakeServer(at_most=0), completion("go", Wanted(4)))
    assert (outcome.ending, outcome.status, outcome.trouble) == ("refused", 429, "busy")
    assert outcome.retry_after == 7
    assert outcome.first_token is None and outcome.token_time is None


def test_bytes_go_out_as_they_are() -> None:
    outcome = send(FakeServer(), Ask(COMPLETIONS, b"{not json"))
    assert (outcome.ending, outcome.status) == ("refused", 400)


def test_nobody_there_is_a_break() -> None:
    async def run() -> Outcome:
        async with open_client(f"http://127.0.0.1:{free_port()}") as client:
            assert await client.get("/health") == (0, "")
            with pytest.raises(TargetError, match="names no model"):
                await client.find_model()
            return await client.send(completion("go", Wanted(1)), perf_counter())

    outcome = asyncio.run(run())
    assert (outcome.ending, outcome.status) == ("broken", 0)


def test_a_client_that_leaves_is_seen_by_the_server_at_once() -> None:
    server = FakeServer(delay=0.02)

    async def leave(client: LoadClient) -> Outcome:
        outcome = await client.send(completion("go", Wanted(1000), hang_up=0.3), perf_counter())
        for _ in range(100):
            await asyncio.sleep(0.01)
            if server.left:
                break
        return outcome

    outcome = with_client(server, leave)
    assert outcome.ending == "aborted" and server.left == 1
    assert 2 < len(outcome.arrivals) < 1000
    assert 0.3 <= outcome.seconds < 2


def test_a_client_may_leave_after_so_many_pieces() -> None:
    server = FakeServer(delay=0.02)

    async def leave(client: LoadClient) -> Outcome:
        outcome = await client.send(replace(completion("go", Wanted(1000)), pieces=5), perf_counter())
        for _ in range(100):
            await asyncio.sleep(0.01)
            if server.left:
                break
        return outcome

    outcome = with_client(server, leave)
    assert outcome.ending == "aborted" and server.left == 1
    assert 5 <= len(outcome.arrivals) < 10


def test_a_client_may_leave_before_anything_came() -> None:
    outcome = send(FakeServer(delay=5), completion("go", Wanted(1, stream=False), hang_up=0.1))
    assert (outcome.ending, outcome.arrivals) == ("aborted", ())


def test_each_turn_of_a_chat_sends_all_before_it_again() -> None:
    server = FakeServer()
    chat = Chat(("one", "two", "three"), Wanted(2), system="be kind")
    outcomes = with_client(server, lambda client: chat.run(client, perf_counter()))
    assert [outcome.ending for outcome in outcomes] == ["complete"] * 3
    last = server.bodies[-1]["messages"]
    assert [m["role"] for m in last] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m["content"] for m in last[1::2]] == ["one", "two", "three"]
    assert [m["content"] for m in last[2::2]] == [outcome.text for outcome in outcomes[:2]]
    assert len({outcome.text for outcome in outcomes}) == 3
    for turn, body in enumerate(server.bodies):
        assert body["messages"] == last[: 2 * turn + 2]
    assert outcomes[1].due >= outcomes[0].ended


def test_a_chat_ends_with_its_first_turn_that_is_not_whole() -> None:
    chat = Chat(("one", "error", "three"), Wanted(4))
    outcomes = with_client(FakeServer(), lambda client: chat.run(client, perf_counter()))
    assert [outcome.ending for outcome in outcomes] == ["complete", "broken"]


def test_fields_beside_ours_go_along() -> None:
    server = FakeServer()
    send(
        server,
        chat_turn([{"role": "user", "content": "hi"}], Wanted(1, more={"seed": 7, "temperature": 0.8})),
    )
    assert (server.bodies[0]["seed"], server.bodies[0]["temperature"]) == (7, 0.8)
