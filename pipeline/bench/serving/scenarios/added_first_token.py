"""What HTTP adds to the time to the first token of an idle server."""

from __future__ import annotations

from statistics import median

from kvfold.pipeline.bench.serving.client.load_summary import LoadSummary, summarise
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.scenarios.served_load import serve_all
from kvfold.pipeline.bench.serving.scenarios.served_prompts import completions, exactly
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.in_process import InProcess, run_in_process
from kvfold.pipeline.bench.serving.servers.started_server import ServerCommand, run_server
from kvfold.plugins.contract.progress import Progress

PROMPT_TOKENS, NEW_TOKENS = 20, 2
REQUESTS = 100  # of a round, one after the other
LIMIT = 2.0  # ms


async def measure(bench: Bench, progress: Progress) -> Measured:
    """With an engine that computes nothing, where the figure is clear, and with the real one."""
    engines = {"zero-cost engine": True, "real engine": False}
    steps = Steps(progress, 2 * len(engines) * bench.rounds)
    in_process: dict[str, list[float]] = {engine: [] for engine in engines}
    over_http: dict[str, list[float]] = {engine: [] for engine in engines}
    loads: dict[str, list[LoadSummary]] = {engine: [] for engine in engines}
    for number in range(bench.rounds):
        for engine, zero_cost in engines.items():
            steps.next(f"{engine}, in process")
            cost = run_in_process(_job(bench, zero_cost, number))
            in_process[engine].append(1e3 * median(cost.first_tokens))
            command = bench.zero_cost(1) if zero_cost else bench.server(1)
            summary = await _serve(command, bench, number, steps.next(f"{engine}, over HTTP"))
            assert summary.first_token is not None
            over_http[engine].append(1e3 * summary.first_token.p50)
            loads[engine].append(summary)
    figures = [
        figure for engine in engines for figure in _figures(engine, over_http[engine], in_process[engine])
    ]
    return Measured(tuple(figures), {engine: tuple(each) for engine, each in loads.items()})


def _job(bench: Bench, zero_cost: bool, number: int) -> InProcess:
    return InProcess(
        bundle=str(bench.bundle),
        zero_cost=zero_cost,
        way="stream",
        at_once=1,
        waves=REQUESTS,
        vocab_size=bench.vocab_size,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
        threads=bench.threads,
        seed=f"first token {number}",
    )


async def _serve(command: ServerCommand, bench: Bench, number: int, progress: Progress) -> LoadSummary:
    async with run_server(command, bench.logs) as server:
        for count, seed in ((5, "warm-up"), (REQUESTS, "measured")):
            wanted = exactly(NEW_TOKENS)
            jobs = completions(count, PROMPT_TOKENS, wanted, bench.vocab_size, f"{seed} {number}")
            load = await serve_all(server, jobs, 1, progress)
    return summarise(load)


def _figures(engine: str, over_http: list[float], in_process: list[float]) -> tuple[Figure, ...]:
    title = f"first token of {PROMPT_TOKENS}, {engine}, p50"
    added = tuple(http - own for http, own in zip(over_http, in_process, strict=True))
    return (
        Figure(f"{title}, in process", "ms", tuple(in_process)),
        Figure(f"{title}, over HTTP", "ms", tuple(over_http)),
        Figure(f"{title}, added", "ms", added, Demand("at most", LIMIT)),
    )
