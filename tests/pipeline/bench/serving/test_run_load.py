"""Loads: so many at once, at their times, until the time is over; and their figures."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from itertools import count, repeat
from time import perf_counter

import pytest

from kvfold.pipeline.bench.serving.client.asks import Chat, Job, Single, Wanted, completion
from kvfold.pipeline.bench.serving.client.load_client import LoadClient, open_client
from kvfold.pipeline.bench.serving.client.load_summary import Percentiles, ServiceLevel, summarise
from kvfold.pipeline.bench.serving.client.outcome import Load, Outcome
from kvfold.pipeline.bench.serving.client.run_load import closed_loop, open_loop, random_times, until
from tests.pipeline.bench.serving.fake_openai_server import FakeServer, serving


def run_on(server: FakeServer, use: Callable[[LoadClient], Awaitable[Load]]) -> Load:
    async def run() -> Load:
        async with serving(server) as url, open_client(url) as client:
            await client.find_model()
            return await use(client)

    return asyncio.run(run())


def single(tokens: int = 2, prompt: str = "go") -> Job:
    return Single(completion(prompt, Wanted(tokens)))


def test_a_closed_loop_keeps_so_many_busy_and_no_more() -> None:
    server = FakeServer(delay=0.01)
    heard: list[int] = []
    jobs = [single() for _ in range(20)]
    load = run_on(server, lambda client: closed_loop(client, jobs, 4, heard.append))
    assert server.most_at_once == 4
    assert len(load.outcomes) == len(server.bodies) == 20
    assert heard == list(range(1, 21))
    assert load.completion_tokens == 40
    assert load.seconds >= 20 / 4 * 0.02
    assert load.requests_per_second == pytest.approx(20 / load.seconds)
    assert load.tokens_per_second == pytest.approx(40 / load.seconds)


def test_every_turn_of_a_chat_is_a_request() -> None:
    chats = [Chat(("a", "b", "c"), Wanted(1)) for _ in range(2)]
    load = run_on(FakeServer(), lambda client: closed_loop(client, chats, 2))
    assert len(load.of("complete")) == 6


def test_an_open_loop_sends_at_its_times_whether_replies_come_or_not() -> None:
    server = FakeServer(delay=0.3)
    times = [0.0, 0.05, 0.1, 0.15]
    load = run_on(server, lambda client: open_loop(client, [(at, single(1)) for at in times]))
    assert server.most_at_once == 4, "it waited for replies"
    due = sorted(outcome.due - load.started for outcome in load.outcomes)
    assert due == pytest.approx(times)
    assert all(outcome.ended >= outcome.due + 0.3 for outcome in load.outcomes)


def test_arrivals_have_their_rate_and_their_seed() -> None:
    times = list(random_times(50, 100, seed=1))
    assert times == sorted(times) and times[-1] < 100
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert times == list(random_times(50, 100, seed=1))
    assert times != list(random_times(50, 100, seed=2))


def test_jobs_end_with_the_time() -> None:
    load = run_on(FakeServer(delay=0.01), lambda client: closed_loop(client, until(repeat(single()), 0.4), 2))
    assert 0.4 <= load.seconds < 2
    assert len(load.outcomes) > 4
    assert next(until(count(), 10)) == 0


def outcome(
    ending: str = "complete", first: float = 0.1, each: float = 0.01, tokens: int = 11, status: int = 200
) -> Outcome:
    arrivals = tuple(first + each * number for number in range(tokens)) if ending == "complete" else ()
    return Outcome(
        due=0.0,
        ended=arrivals[-1] if arrivals else first,
        ending=ending,  # type: ignore[arg-type]  # the literals stand in the tests
        status=status,
        trouble="" if ending == "complete" else "busy",
        arrivals=arrivals,
        prompt_tokens=8,
        cached_tokens=2,
        completion_tokens=len(arrivals),
    )


def test_percentiles_of_known_samples() -> None:
    found = Percentiles.of(float(value) for value in range(101))
    assert found == Percentiles(count=101, p50=50, p90=90, p99=99, most=100)
    assert Percentiles.of(()) is None


def test_goodput_counts_whole_replies_in_time_and_no_others() -> None:
    level = ServiceLevel(first_token=0.5, token_time=0.02)
    outcomes = (
        outcome(),
        outcome(first=0.6),
        outcome(each=0.03),
        outcome(tokens=1, each=9),  # of one token: nothing comes after it
        outcome("aborted"),
        outcome("refused", status=429),
    )
    summary = summarise(Load(0.0, 4.0, outcomes), level)
    assert summary.goodput == 2 / 4
    assert summary.requests_per_second == 4 / 4
    assert summarise(Load(0.0, 4.0, outcomes)).goodput is None


def test_a_mean_hides_no_late_piece_from_the_percentiles() -> None:
    stalled = dataclasses.replace(outcome(tokens=3), arrivals=(0.1, 0.2, 1.2))
    summary = summarise(Load(0.0, 1.0, (stalled,)))
    assert summary.between_pieces is not None and summary.token_time is not None
    assert summary.between_pieces.most == pytest.approx(1.0)
    assert summary.token_time.p50 == pytest.approx(0.55)


def test_a_summary_counts_by_ending_status_and_words() -> None:
    outcomes = (outcome(), outcome(), outcome("refused", status=429), outcome("broken", status=0))
    summary = summarise(Load(0.0, 2.0, outcomes))
    assert summary.endings == {"broken": 1, "complete": 2, "refused": 1}
    assert summary.statuses == {0: 1, 200: 2, 429: 1}
    assert summary.troubles == {"busy": 2}
    assert (summary.prompt_tokens, summary.cached_tokens, summary.completion_tokens) == (16, 4, 22)
    assert summary.first_token is not None and summary.first_token.count == 2
    assert json.loads(json.dumps(dataclasses.asdict(summary)))["tokens_per_second"] == 11


def test_of_nothing_there_are_no_percentiles() -> None:
    now = perf_counter()
    summary = summarise(Load(now, now + 1, ()))
    assert (summary.first_token, summary.whole, summary.requests_per_second) == (None, None, 0)
