"""Send jobs: from clients that each wait for their reply, or at given times whether replies come or not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import TypeVar

from kvfold.pipeline.bench.serving.client.asks import Job, Sender
from kvfold.pipeline.bench.serving.client.outcome import Load, Outcome

Item = TypeVar("Item")
Heard = Callable[[int], object]  # takes how many jobs are done


def unheard(done: int) -> None:
    """For a load that nobody watches."""


async def closed_loop(client: Sender, jobs: Iterable[Job], clients: int, heard: Heard = unheard) -> Load:
    """`clients` at once, each takes the next job when it is done with the last one; ends with the jobs."""
    waiting = iter(jobs)
    outcomes: list[Outcome] = []
    done = 0

    async def work() -> None:
        nonlocal done
        for job in waiting:
            outcomes.extend(await job.run(client, perf_counter()))
            done += 1
            heard(done)

    started = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(work())
    return _load(started, outcomes)


async def open_loop(client: Sender, jobs: Iterable[tuple[float, Job]], heard: Heard = unheard) -> Load:
    """Each job at its time, seconds from the start in rising order; ends when all are answered."""
    outcomes: list[Outcome] = []
    started = perf_counter()
    done = 0

    async def work(job: Job, due: float) -> None:
        nonlocal done
        outcomes.extend(await job.run(client, due))
        done += 1
        heard(done)

    async with asyncio.TaskGroup() as group:
        for at, job in jobs:
            await asyncio.sleep(max(0.0, started + at - perf_counter()))
            group.create_task(work(job, started + at))
    return _load(started, outcomes)


def random_times(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Arrivals of many independent people: `rate` a second on average, for so many seconds."""
    draw = random.Random(seed)
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


def until(items: Iterable[Item], seconds: float) -> Iterator[Item]:
    """Items until so much time has passed since the first one was asked for."""
    end = perf_counter() + seconds
    for item in items:
        if perf_counter() >= end:
            return
        yield item


def _load(started: float, outcomes: list[Outcome]) -> Load:
    ordered = tuple(sorted(outcomes, key=lambda outcome: outcome.ended))
    return Load(started, perf_counter(), ordered)
