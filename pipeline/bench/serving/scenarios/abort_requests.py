"""Clients that leave: how soon their pages are free, and whether a thousand of them cost a page."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from time import perf_counter

from kvfold.pipeline.bench.serving.client.asks import Job, Single, completion
from kvfold.pipeline.bench.serving.client.load_summary import summarise
from kvfold.pipeline.bench.serving.client.run_load import closed_loop
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps, heard_by
from kvfold.pipeline.bench.serving.scenarios.served_prompts import exactly
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.server_metrics import METRICS, REQUESTS, ServerState, read_state
from kvfold.pipeline.bench.serving.servers.started_server import RunningServer, run_server
from kvfold.pipeline.bench.workloads.workloads import write_prompt
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.contract.progress import Progress

AT_ONCE, CLIENTS = 8, 16  # half of the clients wait in the queue
LEAVERS, ABORTS = 20, 1000
STREAM_PIECES = (4, 24)  # of those whose pages are timed
ABORT_SECONDS = 1.0  # at most
PROMPT_TOKENS, NEW_TOKENS = 600, 400
REST_SECONDS = 30.0
LIMIT = 10.0  # ms, beyond one step


async def measure(bench: Bench, progress: Progress) -> Measured:
    """One server for both."""
    steps = Steps(progress, 2)
    draw = random.Random("aborts")
    async with run_server(bench.server(AT_ONCE), bench.logs) as server:
        timed = await _time_leavers(server, bench, draw, steps.next("clients that leave, one by one"))
        doing = steps.next(f"{ABORTS} aborts")
        load = await closed_loop(server.client, _aborts(bench, draw), CLIENTS, heard_by(doing, ABORTS))
        after = await wait_for_rest(server)
    over = tuple(1e3 * (free - step) for free, step in timed)
    return Measured(
        (
            Figure("disconnect to pages free", "ms", tuple(1e3 * free for free, _ in timed)),
            Figure("disconnect to pages free, beyond one step", "ms", over, Demand("at most", LIMIT)),
            Figure(f"pages lost after {ABORTS} aborts", "pages", (lost(after),), Demand("at most", 0)),
        ),
        {"aborts": (summarise(load),)},
        ("That a request is gone is asked over HTTP, which is part of its time.",),
    )


async def state_of(server: RunningServer) -> ServerState:
    """What the server says of its pages and requests now."""
    _, text = await server.client.get(METRICS)
    return read_state(text)


async def wait_for_rest(server: RunningServer) -> ServerState:
    """Its state once no request holds a page; pages that are held for ever are in it.

    Raises:
        TargetError: it has requests that nobody waits for.
    """
    end = perf_counter() + REST_SECONDS
    while not (state := await state_of(server)).at_rest and perf_counter() < end:
        pass
    if state.running or state.waiting:
        raise TargetError(f"{server.title} has no client for {REST_SECONDS:.0f} s and still {state}")
    return state


async def _gone(server: RunningServer) -> float:
    """When nobody is there and no page is held, a clock of `time.perf_counter`.

    Raises:
        TargetError: that does not come.
    """
    end = perf_counter() + REST_SECONDS
    while perf_counter() < end:
        _, listed = await server.client.get(REQUESTS)
        clock = perf_counter()
        if not json.loads(listed)["data"] and (await state_of(server)).at_rest:
            return clock
    raise TargetError(f"{server.title} lists requests of clients that left {REST_SECONDS:.0f} s ago")


def lost(after: ServerState) -> float:
    """Pages that are held though nobody is there."""
    return float(after.pages["used"])


async def _time_leavers(
    server: RunningServer, bench: Bench, draw: random.Random, progress: Progress
) -> list[tuple[float, float]]:
    """Seconds from a disconnect to free pages, and of a step of that stream."""
    times = []
    for number in range(LEAVERS):
        prompt = write_prompt(20, bench.vocab_size, f"leaver {number}")
        ask = replace(completion(prompt, exactly(NEW_TOKENS)), pieces=draw.randint(*STREAM_PIECES))
        outcome = await server.client.send(ask, perf_counter())
        if outcome.ending != "aborted":
            raise TargetError(f"a stream to be left was {outcome.ending}: {outcome.trouble}")
        times.append((await _gone(server) - outcome.ended, median(outcome.gaps)))
        progress((number + 1) / LEAVERS)
        await asyncio.sleep(0.05)
    return times


def _aborts(bench: Bench, draw: random.Random) -> Iterator[Job]:
    """Requests whose clients leave at any moment: in the queue, in a prompt, in a reply."""
    for number in range(ABORTS):
        prompt = write_prompt(draw.randint(1, PROMPT_TOKENS), bench.vocab_size, f"abort {number % 50}")
        yield Single(completion(prompt, exactly(NEW_TOKENS), draw.uniform(0.0, ABORT_SECONDS)))
