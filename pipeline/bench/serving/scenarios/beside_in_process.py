"""Streams of the real engine beside `LLM.generate` of the same prompts."""

from __future__ import annotations

from kvfold.pipeline.bench.serving.client.load_summary import LoadSummary, summarise
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.scenarios.served_load import ServedLoad, serve_costed
from kvfold.pipeline.bench.serving.scenarios.served_prompts import completions, exactly
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.in_process import Cost, InProcess, run_in_process
from kvfold.pipeline.bench.serving.servers.started_server import run_server
from kvfold.plugins.contract.progress import Progress

AT_ONCE, PROMPT_TOKENS, NEW_TOKENS = 64, 128, 64
SHARE = 95.0  # percent of in-process's tokens a second


async def measure(bench: Bench, progress: Progress) -> Measured:
    """A round is one wave in process and the same over HTTP."""
    steps = Steps(progress, 2 * bench.rounds)
    own: list[Cost] = []
    served: list[ServedLoad] = []
    for number in range(bench.rounds):
        steps.next(f"LLM.generate of {AT_ONCE}")
        own.append(run_in_process(_job(bench, number)))
        served.append(await _serve(bench, number, steps.next(f"{AT_ONCE} streams")))
    tokens = AT_ONCE * NEW_TOKENS
    title = f"{AT_ONCE} at once, {PROMPT_TOKENS} in, {NEW_TOKENS} out"
    pairs = list(zip(own, served, strict=True))
    share = tuple(100 * cost.seconds / http.load.seconds for cost, http in pairs)
    cpu = tuple(1e3 * (http.cpu_seconds - cost.cpu_seconds) / tokens for cost, http in pairs)
    loads: tuple[LoadSummary, ...] = tuple(summarise(each.load) for each in served)
    return Measured(
        (
            Figure(f"{title}, LLM.generate", "tokens/s", tuple(tokens / cost.seconds for cost in own)),
            Figure(f"{title}, streams", "tokens/s", tuple(each.load.tokens_per_second for each in served)),
            Figure(f"{title}, streams' share", "%", share, Demand("at least", SHARE)),
            Figure(f"{title}, CPU that streams add to a token", "ms", cpu),
        ),
        {"streams": loads},
    )


def _job(bench: Bench, number: int) -> InProcess:
    return InProcess(
        bundle=str(bench.bundle),
        zero_cost=False,
        way="generate",
        at_once=AT_ONCE,
        waves=1,
        vocab_size=bench.vocab_size,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
        threads=bench.threads,
        seed=f"streams {number}",
    )


async def _serve(bench: Bench, number: int, progress: Progress) -> ServedLoad:
    """One wave after a wave that does not count, as in process."""
    async with run_server(bench.server(AT_ONCE), bench.logs) as server:
        for which in ("warm-up", "0"):
            seed = f"streams {number} {which}"
            jobs = completions(AT_ONCE, PROMPT_TOKENS, exactly(NEW_TOKENS), bench.vocab_size, seed)
            served = await serve_costed(server, jobs, AT_ONCE, progress)
    return served
