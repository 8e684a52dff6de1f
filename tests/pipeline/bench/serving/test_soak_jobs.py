"""A soak's jobs: what each reply must be, and that one which is not is told."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from itertools import islice

import pytest

from kvfold.pipeline.bench.serving.client.asks import Ask, Job
from kvfold.pipeline.bench.serving.client.outcome import Ending, Outcome
from kvfold.pipeline.bench.serving.scenarios.long.soak_jobs import (
    BAD,
    KEPT,
    Judged,
    SoakLog,
    is_place,
    soak_jobs,
)

PLACE = {"place": "river", "visitors": 7, "open": True}


class Scripted:
    """Ends every request alike."""

    def __init__(self, ending: Ending, status: int = 200, text: str = "so") -> None:
        self.outcome = Outcome(0.0, 1.0, ending, status, text=text, finish_reason="stop")
        self.asks: list[Ask] = []

    async def send(self, ask: Ask, due: float) -> Outcome:
        self.asks.append(ask)
        return self.outcome


def jobs_of(kind: str, log: SoakLog) -> Iterator[Job]:
    return (job for job in soak_jobs(log) if isinstance(job, Judged) and job.kind == kind)


def run_jobs(kind: str, client: Scripted, count: int = 20) -> SoakLog:
    log = SoakLog(random.Random(0))

    async def run() -> None:
        for job in islice(jobs_of(kind, log), count):
            await job.run(client, 0.0)

    asyncio.run(run())
    assert log.done == {kind: count}
    return log


def test_there_is_some_of_every_kind() -> None:
    kinds = [job.kind for job in islice(soak_jobs(SoakLog(random.Random(0))), 400) if isinstance(job, Judged)]
    assert {kind: kinds.count(kind) > 20 for kind in kinds} == dict.fromkeys(
        ("chat", "leaver", "bad request", "schema"), True
    )


@pytest.mark.parametrize(
    ("kind", "ending", "status", "right"),
    [
        ("chat", "complete", 200, True),
        ("chat", "refused", 429, True),
        ("chat", "refused", 400, False),
        ("chat", "broken", 200, False),
        ("leaver", "aborted", 0, True),
        ("leaver", "complete", 200, True),
        ("leaver", "broken", 200, False),
        ("leaver", "refused", 500, False),
        ("bad request", "refused", 400, True),
        ("bad request", "refused", 404, True),
        ("bad request", "refused", 500, False),
        ("bad request", "complete", 200, False),
        ("bad request", "broken", 0, False),
        ("schema", "refused", 429, True),
        ("schema", "broken", 200, False),
        ("schema", "complete", 200, False),
    ],
)
def test_each_kind_has_its_own_right_ends(kind: str, ending: Ending, status: int, right: bool) -> None:
    log = run_jobs(kind, Scripted(ending, status))
    assert len(log.wrong) == (0 if right else 20)


def test_a_document_of_the_schema_is_right() -> None:
    assert run_jobs("schema", Scripted("complete", text=json.dumps(PLACE))).wrong == []


@pytest.mark.parametrize(
    "found",
    [
        {**PLACE, "place": "moon"},
        {**PLACE, "visitors": 1000},
        {**PLACE, "visitors": True},
        {**PLACE, "visitors": 1.0},
        {**PLACE, "open": 1},
        {**PLACE, "more": 1},
        {"place": "river"},
        [PLACE],
    ],
)
def test_other_documents_are_not(found: object) -> None:
    assert is_place(json.dumps(PLACE))
    assert not is_place(json.dumps(found))
    assert not is_place(json.dumps(PLACE)[:-1])


def test_replies_are_kept_with_what_was_asked_and_each_has_its_chance() -> None:
    client = Scripted("complete")
    log = run_jobs("chat", client, count=200)
    assert log.seen == len(client.asks) > 4 * KEPT
    assert len(log.kept) == KEPT
    bodies = [ask.body for ask in client.asks if not isinstance(ask.body, bytes)]
    places = [bodies.index(body) for body, text in log.kept if text == "so"]
    assert len(places) == KEPT
    assert min(places) < len(bodies) / 4 and max(places) > len(bodies) * 3 / 4


def test_half_of_the_chats_are_drawn_with_a_seed() -> None:
    client = Scripted("complete")
    run_jobs("chat", client, count=100)
    drawn = [ask for ask in client.asks if not isinstance(ask.body, bytes) and "seed" in ask.body]
    assert len(client.asks) / 4 < len(drawn) < len(client.asks) * 3 / 4


def test_every_bad_request_is_sent() -> None:
    client = Scripted("refused", 400)
    run_jobs("bad request", client, count=200)
    assert {ask.path for ask in client.asks} == {ask.path for ask in BAD}
    assert all(ask in client.asks for ask in BAD)
