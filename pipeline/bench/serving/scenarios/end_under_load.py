"""SIGTERM while streams run: they end whole, nobody new gets in, the process ends well."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import perf_counter

from kvfold.pipeline.bench.serving.client.asks import Job, Single
from kvfold.pipeline.bench.serving.client.load_summary import summarise
from kvfold.pipeline.bench.serving.client.outcome import Outcome
from kvfold.pipeline.bench.serving.client.run_load import closed_loop
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.scenarios.served_prompts import completions, exactly
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.started_server import RunningServer, run_server
from kvfold.plugins.contract.progress import Progress

AT_ONCE, CLIENTS = 8, 16  # half of the requests wait when the signal comes
PROMPT_TOKENS, NEW_TOKENS = 64, 64
SIGNAL_AFTER = 5.0  # seconds of load
LOOK_SECONDS = 0.002
GONE = 100.0  # ms until readiness is false


async def measure(bench: Bench, progress: Progress) -> Measured:
    """A fresh server each round."""
    steps = Steps(progress, bench.rounds)
    gone: list[float] = []
    broken: list[float] = []
    let_in: list[float] = []
    failed: list[float] = []
    loads = []
    for number in range(bench.rounds):
        steps.next("SIGTERM under load")
        async with run_server(bench.server(AT_ONCE), bench.logs) as server:
            signalled = asyncio.Event()
            jobs = _until(signalled, bench, number)
            load = asyncio.create_task(closed_loop(server.client, jobs, CLIENTS))
            await asyncio.sleep(SIGNAL_AFTER)
            signalled.set()
            server.terminate()
            gone.append(1e3 * await _until_unready(server))
            late = await _knock(server, bench, number)
            done = await load
            broken.append(float(len(done.outcomes) - len(done.of("complete"))))
            let_in.append(float(late.status not in (0, 503)))
            failed.append(float(await server.exit_code() != 0))
            loads.append(summarise(done))
    return Measured(
        (
            Figure("streams and waiting requests that did not end whole", "", (max(broken),), NONE),
            Figure("readiness false after SIGTERM", "ms", tuple(gone), Demand("at most", GONE)),
            Figure("rounds in which a new request got in", "", (sum(let_in),), NONE),
            Figure("rounds in which the server did not end with 0", "", (sum(failed),), NONE),
        ),
        {"SIGTERM": tuple(loads)},
    )


NONE = Demand("at most", 0)


def _until(signalled: asyncio.Event, bench: Bench, number: int) -> Iterator[Job]:
    """Requests, none after the signal."""
    for job in completions(1000, PROMPT_TOKENS, exactly(NEW_TOKENS), bench.vocab_size, f"end {number}"):
        if signalled.is_set():
            return
        yield job


async def _until_unready(server: RunningServer) -> float:
    """Seconds until the server no longer says that it is ready."""
    started = perf_counter()
    while (await server.client.get(server.ready))[0] == 200:
        await asyncio.sleep(LOOK_SECONDS)
    return perf_counter() - started


async def _knock(server: RunningServer, bench: Bench, number: int) -> Outcome:
    """A request that comes too late."""
    (late,) = completions(1, PROMPT_TOKENS, exactly(1), bench.vocab_size, f"late {number}")
    assert isinstance(late, Single)
    return await server.client.send(late.ask, perf_counter())
