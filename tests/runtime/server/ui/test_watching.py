"""The stream of snapshots and the tree: what a watcher sees, whose it is, and what it costs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.memory import tree_copy
from kvfold.runtime.server.ui import tree_views, watching
from tests.runtime.harness import PLANS, make_llm
from tests.runtime.server.asgi_client import Exchange, until
from tests.runtime.server.guard.test_gate import KEYS, bearer, entry, write
from tests.runtime.server.ui.watched import CACHE, EVENTS, Watched, make_app, snapshots, watched

PROMPT = list(range(100))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "EVENT_SECONDS", 0.01)
    monkeypatch.setattr(tree_views, "LEAST_SECONDS", 0.0)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write(tmp_path / "keys.json", [*KEYS, entry("carol"), entry("dave")])


def run(work: Callable[[Watched], Awaitable[None]], keys: Path | None = None, llm: Any = None) -> None:
    async def inside() -> None:
        async with watched(keys, llm) as server:
            await asyncio.wait_for(work(server), 60)

    asyncio.run(inside())


def boxes(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(tree["fields"], row, strict=True)) for row in tree["boxes"]]


def test_the_first_snapshot_has_everything_and_later_ones_what_is_new() -> None:
    async def work(server: Watched) -> None:
        await server.complete(PROMPT)
        await server.complete(PROMPT)
        await until(lambda: server.state.llm.snapshot().metrics.cache.queried_tokens == 200)
        exchange = Exchange(server.app, "GET", EVENTS)
        await until(lambda: any(each["tree"] for each in snapshots(exchange)))
        await server.complete(PROMPT)
        await until(lambda: any(len(each["ended"]) == 1 for each in snapshots(exchange)))
        exchange.leave()
        await exchange.end()
        first, *later = snapshots(exchange)
        assert [each["reused_tokens"] for each in first["ended"]] == [0, 96]
        assert sum(len(each["ended"]) for each in later) == 1
        assert len({one["id"] for each in (first, *later) for one in each["ended"]}) == 3
        assert first["server"]["problem"] is None
        assert first["counts"]["ends"]["length"] == 2 and first["counts"]["reply_tokens"] == 4
        assert (first["cache"]["queried_tokens"], first["cache"]["hit_tokens"]) == (200, 96)
        assert first["speed"]["minutes"]["5"]["first_token"]["values"] == 2
        trees = [each["tree"] for each in later if each["tree"]]
        assert [sum(box["hits"] for box in boxes(tree)) for tree in (trees[0], trees[-1])] == [1, 2]
        assert all(a["clock"] < b["clock"] for a, b in pairwise(trees)), "a tree that stays is sent once"

    run(work)


def test_a_running_request_is_seen_with_what_it_reused() -> None:
    async def work(server: Watched) -> None:
        await server.complete(PROMPT)
        stream = server.stream(PROMPT)
        await server.runs(stream)
        (snapshot,) = await server.events(1)
        (request,) = snapshot["requests"]
        assert (request["state"], request["prompt_tokens"], request["reused_tokens"]) == ("decode", 100, 96)
        assert request["why"].startswith("All that can be shared was reused")
        stream.leave()
        await stream.end()
        (snapshot,) = await server.events(1)
        assert snapshot["ended"][-1]["reason"] == "client" and snapshot["ended"][-1]["reused_tokens"] == 96

    run(work)


def test_the_tree_is_told_in_tokens_pages_and_hits() -> None:
    async def work(server: Watched) -> None:
        for last in (1, 2, 3):
            await server.complete([*range(64), *[last] * 40])
        tree = (await server.get(CACHE)).json()
        root, *others = boxes(tree)
        assert (root["parent"], root["tokens"]) == (-1, 0)
        sinks = next(box for box in others if box["first"] == 0)
        shared = next(box for box in others if box["first"] == 16)
        # The window of the shared prefix was not kept before the second prompt went through it.
        assert (sinks["tokens"], sinks["hits"]) == (16, 2) and (shared["tokens"], shared["hits"]) == (48, 1)
        below = [box for box in others if box["parent"] == tree["boxes"].index(list(shared.values()))]
        assert [(box["first"], box["tokens"]) for box in below] == [(64, 32)] * 3
        assert tree["pages"] == tree["shown_pages"] == 10
        assert [group["group"] for group in tree["groups"]] == ["global", "window32_sink4"]
        assert shared["pages"] == [3, 2] and shared["checkpoints"] == [64]

    run(work)


def test_tenants_see_their_own_and_an_admin_sees_all(keys: Path) -> None:
    async def work(server: Watched) -> None:
        await server.complete(PROMPT, bearer("carol"))
        await server.complete(PROMPT, bearer("dave"))
        stream = server.stream(PROMPT, bearer("carol"))
        await server.runs(stream)
        seen = {}
        for name in ("carol", "dave", "root"):
            (snapshot,) = await server.events(1, bearer(name))
            tree = (await server.get(CACHE, bearer(name))).json()
            seen[name] = (
                [each["tenant"] for each in snapshot["requests"]],
                [each["tenant"] for each in snapshot["ended"]],
                sorted({box["tenant"] for box in boxes(tree)}),
                tree["pages"] is None,
                all(snapshot[part] is None for part in ("counts", "speed", "cache")),
            )
        assert seen["carol"] == (["carol"], ["carol"], ["carol"], True, True)
        assert seen["dave"] == ([], ["dave"], ["dave"], True, True)
        assert seen["root"] == (["carol"], ["carol", "dave"], ["carol", "dave"], False, False)
        (snapshot,) = await server.events(1, bearer("bob"))  # a key for metrics
        assert snapshot["counts"] is not None and snapshot["ended"] == []
        assert (await server.get(CACHE, bearer("bob"))).status == 403
        assert (await server.get(EVENTS)).status == (await server.get(CACHE)).status == 401
        stream.leave()
        await stream.end()

    run(work, keys)


def test_the_tree_is_copied_only_while_somebody_looks_and_once_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies: list[str | None] = []

    class Counted(tree_copy.TreeCopy):
        def __init__(self, tree: Any, tenant: str | None) -> None:
            copies.append(tenant)
            super().__init__(tree, tenant)

    monkeypatch.setattr("kvfold.runtime.loop.engine_loop.TreeCopy", Counted)
    monkeypatch.setattr(tree_views, "LEAST_SECONDS", 1000.0)

    async def work(server: Watched) -> None:
        await server.complete(PROMPT)
        assert copies == []
        await asyncio.gather(*(server.events(5) for _ in range(3)))
        assert copies == [None]

    run(work)


def test_an_engine_that_hangs_is_seen_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "TREE_SECONDS", 0.05)
    llm, engine = make_llm(PLANS["hybrid"])
    go, execute = threading.Event(), engine.execute

    def hang(step: StepInputs) -> np.ndarray:
        go.wait()
        return execute(step)

    async def work(server: Watched) -> None:
        server.state.stall_seconds = 0.0
        monkeypatch.setattr(engine, "execute", hang)
        stream = server.stream(PROMPT)
        await until(lambda: server.state.step_age() > 0.02)
        for snapshot in await server.events(3):
            assert snapshot["server"]["problem"].startswith("hung")
            assert snapshot["server"]["step_age_seconds"] > 0 and snapshot["tree"] is None
        answer = await server.get(CACHE)
        assert (answer.status, answer.error["code"]) == (503, "hung")
        go.set()
        stream.leave()
        await stream.end()

    run(work, llm=llm)


def test_a_server_that_loads_can_be_watched() -> None:
    async def inside() -> None:
        app, state = make_app()
        (snapshot,) = await Watched(app, state).events(1)
        assert snapshot["server"]["problem"].startswith("loading")
        assert snapshot["tree"] is None and snapshot["requests"] == []

    asyncio.run(inside())


def test_the_stream_ends_with_the_server() -> None:
    async def work(server: Watched) -> None:
        stream = server.stream(PROMPT)
        await server.runs(stream)
        events = Exchange(server.app, "GET", EVENTS)
        await until(lambda: events.answer.parts)
        server.state.draining = True
        seen = len(snapshots(events))
        await until(lambda: len(snapshots(events)) > seen + 1)
        assert not events.answer.complete, "what drains can be watched"
        stream.leave()
        await stream.end()
        await events.end()
        assert events.answer.complete and snapshots(events)[-1]["server"]["problem"].startswith("draining")

    run(work)
