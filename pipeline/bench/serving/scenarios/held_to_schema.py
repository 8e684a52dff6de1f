"""What a schema adds to the time between tokens."""

from __future__ import annotations

from statistics import median

from kvfold.pipeline.bench.serving.client.asks import EXACTLY, Body, Wanted
from kvfold.pipeline.bench.serving.client.load_summary import LoadSummary, summarise
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.scenarios.served_load import serve_all
from kvfold.pipeline.bench.serving.scenarios.served_prompts import completions
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.started_server import RunningServer, run_server
from kvfold.plugins.contract.progress import Progress

AT_ONCE, PROMPT_TOKENS, NEW_TOKENS = 8, 64, 128
ADDED = 5.0  # percent
# No document of it is as short as a reply: all streams have NEW_TOKENS tokens, as those without a schema.
SCHEMA: Body = {
    "type": "object",
    "properties": {
        "places": {
            "type": "array",
            "minItems": 200,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 24}, "visitors": {"type": "integer"}},
                "required": ["name", "visitors"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["places"],
    "additionalProperties": False,
}
HELD: Body = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "places", "schema": SCHEMA, "strict": True},
    }
}
KINDS: dict[str, Body] = {"free": EXACTLY, "held to a schema": HELD}


async def measure(bench: Bench, progress: Progress) -> Measured:
    """A round is one server, which streams both kinds after a wave of each that does not count."""
    steps = Steps(progress, 2 * len(KINDS) * bench.rounds)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    loads: dict[str, list[LoadSummary]] = {kind: [] for kind in KINDS}
    for number in range(bench.rounds):
        async with run_server(bench.server(AT_ONCE), bench.logs) as server:
            for which in ("warm-up", "measured"):
                for kind in KINDS:
                    seconds, load = await _stream(server, bench, kind, f"{which} {number}", steps.next(kind))
                    if which == "measured":
                        times[kind].append(seconds)
                        loads[kind].append(load)
    free, held = times.values()
    added = tuple(100 * (b - a) / a for a, b in zip(free, held, strict=True))
    title = f"between tokens, {AT_ONCE} streams"
    return Measured(
        (
            *(Figure(f"{title}, {kind}", "ms", tuple(1e3 * each for each in times[kind])) for kind in KINDS),
            Figure(f"{title}, what a schema adds", "%", added, Demand("at most", ADDED)),
        ),
        {kind: tuple(each) for kind, each in loads.items()},
    )


async def _stream(
    server: RunningServer, bench: Bench, kind: str, seed: str, progress: Progress
) -> tuple[float, LoadSummary]:
    """The middle stream's seconds a token, and the load."""
    wanted = Wanted(NEW_TOKENS, stream=True, more=KINDS[kind])
    jobs = completions(AT_ONCE, PROMPT_TOKENS, wanted, bench.vocab_size, f"{kind} {seed}")
    load = await serve_all(server, jobs, AT_ONCE, progress)
    return median(outcome.token_time or 0.0 for outcome in load.outcomes), summarise(load)
