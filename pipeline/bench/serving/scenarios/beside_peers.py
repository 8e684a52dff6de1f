"""Requests and chats a second: kvfold's bundles beside llama.cpp's server, and any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from kvfold.pipeline.bench.serving.client.asks import Job
from kvfold.pipeline.bench.serving.client.load_summary import summarise
from kvfold.pipeline.bench.serving.client.outcome import Load
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.scenarios.served_load import serve_all, serve_costed
from kvfold.pipeline.bench.serving.scenarios.served_prompts import chats, completions, exactly
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.kvfold_server import KvfoldOptions, kvfold_server
from kvfold.pipeline.bench.serving.servers.llama_server import TITLE as PEER
from kvfold.pipeline.bench.serving.servers.started_server import (
    Endpoint,
    RunningServer,
    reach_server,
    run_server,
)
from kvfold.plugins.contract.progress import Progress

AT_ONCE = 64
LENGTH = 1024  # of the longest chat, with its template; a slot of the peer holds so much
KV_CACHE_BYTES = 3 << 29  # what the peer's slots take of SmolLM2-135M in float16


@dataclass(frozen=True)
class Workload:
    """What all servers are asked for.

    Attributes:
        title: of its figures.
        lead: how many times the peer's rate kvfold's is to be.
        jobs: for a vocabulary of so many tokens, made from a seed.
    """

    title: str
    lead: float
    jobs: Callable[[int, str], list[Job]]


WORKLOADS = (
    Workload(
        f"{AT_ONCE} at once, 256 in, 64 out",
        2.0,
        lambda vocab_size, seed: [*completions(192, 256, exactly(64), vocab_size, seed)],
    ),
    Workload(f"{AT_ONCE} chats of 8 turns", 3.0, lambda _, seed: [*chats(AT_ONCE, 8, 32, exactly(32), seed)]),
)


@dataclass
class Rounds:
    """Of one server and one workload."""

    loads: list[Load] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)  # of servers that the bench started

    @property
    def rates(self) -> tuple[float, ...]:
        """Requests a second."""
        return tuple(load.requests_per_second for load in self.loads)


Found = Mapping[str, Mapping[Workload, Rounds]]


async def measure(bench: Bench, progress: Progress) -> Measured:
    """Every server in turn, as many rounds as are asked for; a fresh process each."""
    count = 1 + len(bench.beside) + len(bench.urls) + (bench.peer is not None)
    steps = Steps(progress, bench.rounds * count * len(WORKLOADS))
    found: dict[str, dict[Workload, Rounds]] = {}
    for number in range(bench.rounds):
        for opened in _servers(bench):
            async with opened as server:
                rounds = found.setdefault(server.title, {work: Rounds() for work in WORKLOADS})
                warm = completions(8, 256, exactly(8), bench.vocab_size, f"warm-up {number}")
                await serve_all(server, warm, 8)
                for work in WORKLOADS:
                    jobs = work.jobs(bench.vocab_size, f"{work.title} {number}")
                    doing = steps.next(f"{server.title}, {work.title}")
                    await _serve(server, jobs, rounds[work], doing)
    loads = {
        f"{title}, {work.title}": tuple(map(summarise, rounds.loads))
        for title, works in found.items()
        for work, rounds in works.items()
    }
    return Measured(tuple(_figures(found)), loads, tuple(_notes(found)))


def _servers(bench: Bench) -> Iterator[AbstractAsyncContextManager[Endpoint]]:
    options = KvfoldOptions(AT_ONCE, KV_CACHE_BYTES, bench.threads)
    commands = [kvfold_server(bundle, options) for bundle in (bench.bundle, *bench.beside)]
    if bench.peer is not None:
        commands.append(bench.peer.command(AT_ONCE, LENGTH, bench.threads))
    yield from (run_server(command, bench.logs) for command in commands)
    yield from map(reach_server, bench.urls)


async def _serve(server: Endpoint, jobs: list[Job], rounds: Rounds, progress: Progress) -> None:
    if isinstance(server, RunningServer):
        served = await serve_costed(server, jobs, AT_ONCE, progress)
        rounds.loads.append(served.load)
        rounds.cpu_seconds.append(served.cpu_seconds)
    else:
        rounds.loads.append(await serve_all(server, jobs, AT_ONCE, progress))


def _figures(found: Found) -> Iterator[Figure]:
    for work in WORKLOADS:
        of_work = {title: works[work] for title, works in found.items()}
        for title, rounds in of_work.items():
            yield Figure(f"{title}, {work.title}", "requests/s", rounds.rates)
        for title, rounds in of_work.items():
            costs = zip(rounds.cpu_seconds, rounds.loads, strict=False)
            if cpu := tuple(seconds / len(load.outcomes) for seconds, load in costs):
                yield Figure(f"{title}, {work.title}", "CPU s/request", cpu)
        if (peer := of_work.get(PEER)) is not None:
            for title, rounds in of_work.items():
                if title.startswith("kvfold "):
                    pairs = zip(rounds.rates, peer.rates, strict=True)
                    lead = tuple(own / theirs for own, theirs in pairs)
                    yield Figure(
                        f"{title} over {PEER}, {work.title}", "x", lead, Demand("at least", work.lead)
                    )


def _notes(found: Found) -> Iterator[str]:
    """Tokens that each server counted: a comparison of unequal work must say so."""
    for title, works in found.items():
        for work, rounds in works.items():
            whole = [outcome for load in rounds.loads for outcome in load.outcomes]
            yield (
                f"{title}, {work.title}: {sum(o.prompt_tokens for o in whole):,} tokens of prompts, of which "
                f"{sum(o.cached_tokens for o in whole):,} from its cache, and "
                f"{sum(o.completion_tokens for o in whole):,} of replies."
            )
