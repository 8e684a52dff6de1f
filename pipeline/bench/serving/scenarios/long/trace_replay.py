"""Replay arrivals of a trace in Mooncake's form: when, how long, and which blocks prompts share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvfold.pipeline.bench.serving.client.asks import Job, Single, completion
from kvfold.pipeline.bench.serving.client.load_summary import ServiceLevel, summarise
from kvfold.pipeline.bench.serving.client.run_load import open_loop
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, heard_by
from kvfold.pipeline.bench.serving.scenarios.served_prompts import exactly
from kvfold.pipeline.bench.serving.serve_results import Figure, Measured
from kvfold.pipeline.bench.serving.servers.started_server import run_server
from kvfold.pipeline.bench.trace.trace_file import BLOCK_TOKENS, read_trace_file
from kvfold.pipeline.bench.workloads.workloads import write_prompt
from kvfold.plugins.contract.errors import RequestError
from kvfold.plugins.contract.progress import Progress

AT_ONCE = 16
SHORTER = 16  # prompts and replies are so many times shorter than in the trace: it is of a far larger model
SLOWER = 4.0  # and come so many times more slowly
SECONDS = 300.0
LONGEST = 7_000  # tokens of a prompt; longer ones are cut
LEVEL = ServiceLevel(first_token=2.0, token_time=0.1)


@dataclass(frozen=True)
class Arrival:
    """A request of a trace, as it is replayed.

    Attributes:
        at: seconds from the start.
        prompt_tokens: of it.
        new_tokens: of the reply.
        blocks: names of its blocks of `BLOCK_TOKENS / SHORTER` tokens; equal names hold equal tokens.
    """

    at: float
    prompt_tokens: int
    new_tokens: int
    blocks: tuple[int, ...]

    def prompt(self, vocab_size: int) -> list[int]:
        """Its token ids."""
        size = BLOCK_TOKENS // SHORTER
        ids = [token for name in self.blocks for token in write_prompt(size, vocab_size, f"block {name}")]
        return ids[: self.prompt_tokens]


def read_trace(path: Path) -> Iterator[Arrival]:
    """The arrivals of the first `SECONDS`.

    Raises:
        RequestError: it is no such trace.
    """
    for request in read_trace_file(path):
        at = SLOWER * request.timestamp / 1000
        if at >= SECONDS:
            return
        yield Arrival(
            at=at,
            prompt_tokens=min(LONGEST, max(1, request.input_length // SHORTER)),
            new_tokens=max(1, request.output_length // SHORTER),
            blocks=request.hash_ids,
        )


async def measure(bench: Bench, progress: Progress) -> Measured:
    """Once."""
    if bench.trace is None:
        raise RequestError("scenario trace replays a file; name it with --trace")
    arrivals = list(read_trace(bench.trace))
    jobs: list[tuple[float, Job]] = [
        (each.at, Single(completion(each.prompt(bench.vocab_size), exactly(each.new_tokens))))
        for each in arrivals
    ]
    async with run_server(bench.server(AT_ONCE), bench.logs) as server:
        load = await open_loop(server.client, jobs, heard_by(progress, len(jobs)))
    summary = summarise(load, LEVEL)
    offered = len(jobs) / SECONDS
    first = summary.first_token
    waits = () if first is None else (("p50", first.p50), ("p99", first.p99))
    return Measured(
        (
            Figure("offered", "requests/s", (offered,)),
            Figure(
                f"first token within {LEVEL.first_token:g} s, then {LEVEL.token_time:g} s a token",
                "requests/s",
                (summary.goodput or 0.0,),
            ),
            Figure(
                "prompt tokens from the cache",
                "%",
                (_cached_share(summary.cached_tokens, summary.prompt_tokens),),
            ),
            *(Figure(f"first token, {name}", "s", (wait,)) for name, wait in waits),
        ),
        {"trace": (summary,)},
        (
            f"{bench.trace.name}: its first {SECONDS / SLOWER:.0f} s, {SLOWER:g} times slower, prompts and "
            f"replies {SHORTER} times shorter.",
        ),
    )


def _cached_share(cached: int, prompt: int) -> float:
    return 100 * cached / prompt if prompt else 0.0
