"""Requests and chats a second, kvfold's bundles beside llama.cpp's server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvfold.pipeline.bench.serving.client.load_summary import LoadSummary, summarise
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Scenario, Steps
from kvfold.pipeline.bench.serving.scenarios.served_load import ServedLoad, serve_all
from kvfold.pipeline.bench.serving.scenarios.served_prompts import chats, completions, exactly
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.kvfold_server import KvfoldOptions, kvfold_server
from kvfold.pipeline.bench.serving.servers.server_process import RunningServer, ServerCommand, run_server
from kvfold.plugins.contract.progress import Progress

AT_ONCE = 64
PROMPT_TOKENS, NEW_TOKENS, REQUESTS = 256, 64, 192
TURNS, MESSAGE_WORDS, REPLY_TOKENS = 8, 32, 32
LENGTH = 1024  # of the longest chat, with its template; a slot of the peer holds so much
KV_CACHE_BYTES = 3 << 29  # what the peer's slots take of SmolLM2-135M in float16
REQUEST_LEAD, CHAT_LEAD = 2.0, 3.0


@dataclass
class Samples:
    """Of one server, a round each."""

    requests: list[ServedLoad] = field(default_factory=list)
    chats: list[ServedLoad] = field(default_factory=list)


async def measure(bench: Bench, progress: Progress) -> Measured:
    """Every server in turn, as many rounds as are asked for; a fresh process each."""
    servers = _servers(bench)
    steps = Steps(progress, 2 * bench.rounds * len(servers))
    found = {server.title: Samples() for server in servers}
    for number in range(bench.rounds):
        for command in servers:
            async with run_server(command, bench.logs) as server:
                samples = found[command.title]
                await _measure_round(server, bench, number, samples, steps)
    loads = {
        f"{title}, {what}": tuple(summarise(each.load) for each in kind)
        for title, samples in found.items()
        for what, kind in (("requests", samples.requests), ("chats", samples.chats))
    }
    return Measured(tuple(_figures(found)), loads, _notes(loads))


def _servers(bench: Bench) -> list[ServerCommand]:
    options = KvfoldOptions(AT_ONCE, KV_CACHE_BYTES, bench.threads)
    own = [kvfold_server(bundle, options) for bundle in (bench.bundle, *bench.beside)]
    peer = bench.peer
    return own if peer is None else [*own, peer.command(AT_ONCE, LENGTH, bench.threads)]


async def _measure_round(
    server: RunningServer, bench: Bench, number: int, samples: Samples, steps: Steps
) -> None:
    warm = completions(8, PROMPT_TOKENS, exactly(8), bench.vocab_size, f"warm-up {number}")
    await serve_all(server, warm, 8)
    requests = completions(
        REQUESTS, PROMPT_TOKENS, exactly(NEW_TOKENS), bench.vocab_size, f"requests {number}"
    )
    doing = steps.next(f"{server.title}, requests")
    samples.requests.append(await serve_all(server, requests, AT_ONCE, doing))
    talks = chats(AT_ONCE, TURNS, MESSAGE_WORDS, exactly(REPLY_TOKENS), f"chats {number}")
    doing = steps.next(f"{server.title}, chats of {TURNS} turns")
    samples.chats.append(await serve_all(server, talks, AT_ONCE, doing))


def _figures(found: Mapping[str, Samples]) -> list[Figure]:
    requests = f"{AT_ONCE} at once, {PROMPT_TOKENS} in, {NEW_TOKENS} out"
    talks = f"{AT_ONCE} chats of {TURNS} turns"
    figures: list[Figure] = []
    for what, lead, kind in ((requests, REQUEST_LEAD, "requests"), (talks, CHAT_LEAD, "chats")):
        rates = {title: _rates(getattr(samples, kind)) for title, samples in found.items()}
        figures += [Figure(f"{title}, {what}", "requests/s", rate) for title, rate in rates.items()]
        figures += [
            Figure(f"{title}, {what}, CPU", "s/request", _cpu(getattr(samples, kind)))
            for title, samples in found.items()
        ]
        figures += _leads(what, rates, lead)
    return figures


def _leads(what: str, rates: Mapping[str, tuple[float, ...]], lead: float) -> list[Figure]:
    """Each bundle's rate over the peer's, round by round."""
    *own, peer = rates
    if peer != "llama-server":
        return []
    return [
        Figure(
            f"{title} over {peer}, {what}",
            "x",
            tuple(a / b for a, b in zip(rates[title], rates[peer], strict=True)),
            Demand("at least", lead),
        )
        for title in own
    ]


def _rates(served: list[ServedLoad]) -> tuple[float, ...]:
    return tuple(each.load.requests_per_second for each in served)


def _cpu(served: list[ServedLoad]) -> tuple[float, ...]:
    return tuple(each.cpu_seconds / len(each.load.outcomes) for each in served)


def _notes(loads: Mapping[str, tuple[LoadSummary, ...]]) -> tuple[str, ...]:
    """Tokens that each server counted: a comparison of unequal work must say so."""
    counts = {
        title: f"{title}: {sum(each.prompt_tokens for each in summaries):,} tokens of prompts, of which "
        f"{sum(each.cached_tokens for each in summaries):,} from its cache, and "
        f"{sum(each.completion_tokens for each in summaries):,} of replies."
        for title, summaries in loads.items()
    }
    return tuple(counts.values())


SCENARIO = Scenario("peers", "requests and chats a second beside llama.cpp's server", measure)
