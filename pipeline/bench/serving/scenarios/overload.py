"""Ten times more requests than the server can answer: what it still answers, and how it refuses the rest."""

from __future__ import annotations

import asyncio
from statistics import median

from kvfold.pipeline.bench.serving.client.asks import Job
from kvfold.pipeline.bench.serving.client.load_summary import summarise
from kvfold.pipeline.bench.serving.client.outcome import Load
from kvfold.pipeline.bench.serving.client.run_load import open_loop, random_times
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.scenarios.served_load import serve_all
from kvfold.pipeline.bench.serving.scenarios.served_prompts import completions, exactly
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.process_tree import MemoryLog
from kvfold.pipeline.bench.serving.servers.started_server import RunningServer, run_server
from kvfold.plugins.contract.progress import Progress

AT_ONCE = 8
PROMPT_TOKENS, NEW_TOKENS = 64, 32
CAPACITY_REQUESTS = 160
TIMES, SECONDS = 10.0, 60.0
SETTLED, LAST = (10.0, 20.0), 10.0  # seconds in which the memory is looked at: first, and at the end
GOODPUT, GROWTH = 90.0, 2.0  # percent


async def measure(bench: Bench, progress: Progress) -> Measured:
    """Capacity first: as many clients as run at once, never idle."""
    steps = Steps(progress, 2)
    async with run_server(bench.server(AT_ONCE), bench.logs) as server:
        doing = steps.next("capacity")
        for which, count in (("warm-up", AT_ONCE), ("capacity", CAPACITY_REQUESTS)):
            capacity = await serve_all(server, _jobs(bench, count, which), AT_ONCE, doing)
        doing = steps.next(f"{TIMES:.0f} times as many for {SECONDS:.0f} s")
        load, memory = await _overload(server, bench, TIMES * capacity.requests_per_second, doing)
    return Measured(
        _figures(capacity, load, memory),
        {"capacity": (summarise(capacity),), "overload": (summarise(load),)},
    )


def _jobs(bench: Bench, count: int, seed: str) -> list[Job]:
    return [*completions(count, PROMPT_TOKENS, exactly(NEW_TOKENS), bench.vocab_size, seed)]


async def _overload(
    server: RunningServer, bench: Bench, rate: float, progress: Progress
) -> tuple[Load, MemoryLog]:
    times = list(random_times(rate, SECONDS, seed=0))
    jobs = _jobs(bench, len(times), "overload")
    memory = MemoryLog(server.tree)
    watching = asyncio.create_task(watch_memory(memory, SECONDS, progress))
    try:
        load = await open_loop(server.client, zip(times, jobs, strict=True))
    finally:
        watching.cancel()
    return load, memory


async def watch_memory(memory: MemoryLog, seconds: float, progress: Progress) -> None:
    """Look at it every second, until cancelled, and tell how much of the time has passed."""
    async for at, mib in memory.watch(1.0):
        progress(min(1.0, at / seconds), f"{mib:,.0f} MiB")


def _figures(capacity: Load, load: Load, memory: MemoryLog) -> tuple[Figure, ...]:
    in_time = [o for o in load.of("complete") if o.ended <= load.started + SECONDS]
    goodput = 100 * len(in_time) / SECONDS / capacity.requests_per_second
    refused = load.of("refused")
    early, late = memory.between(*SETTLED), memory.between(SECONDS - LAST, SECONDS)
    usual, busy = summarise(capacity).first_token, summarise(load).first_token
    waits = () if usual is None or busy is None else (busy.p99 / usual.p99,)
    return (
        Figure("capacity", "requests/s", (capacity.requests_per_second,)),
        Figure("replies in the minute, of capacity", "%", (goodput,), Demand("at least", GOODPUT)),
        Figure("requests neither answered nor refused", "", (_count(load, "broken"),), Demand("at most", 0)),
        Figure(
            "refusals other than 429",
            "",
            (float(sum(outcome.status != 429 for outcome in refused)),),
            Demand("at most", 0),
        ),
        Figure(
            "429 without Retry-After",
            "",
            (float(sum(o.status == 429 and o.retry_after is None for o in refused)),),
            Demand("at most", 0),
        ),
        Figure("refused", "%", (100 * len(refused) / len(load.outcomes),)),
        Figure(
            "memory, last 10 s over the second 10 s", "%", (growth(early, late),), Demand("at most", GROWTH)
        ),
        *(Figure("first token, p99 over capacity's", "x", (wait,)) for wait in waits),
    )


def growth(early: list[float], late: list[float]) -> float:
    """Percent that the median grew."""
    return 100 * (median(late) / median(early) - 1)


def _count(load: Load, ending: str) -> float:
    return float(sum(outcome.ending == ending for outcome in load.outcomes))
