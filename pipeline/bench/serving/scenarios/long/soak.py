"""Half an hour of everything at once, with a tiny cache: nothing is lost, nothing grows, nothing is wrong."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from kvfold.pipeline.bench.serving.client.load_summary import summarise
from kvfold.pipeline.bench.serving.client.outcome import Load
from kvfold.pipeline.bench.serving.client.run_load import closed_loop, until
from kvfold.pipeline.bench.serving.scenarios.abort_requests import lost, wait_for_rest
from kvfold.pipeline.bench.serving.scenarios.long.soak_jobs import SHOWN, SoakLog, soak_jobs
from kvfold.pipeline.bench.serving.scenarios.overload import growth, watch_memory
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.cold_replies import cold_replies
from kvfold.pipeline.bench.serving.servers.process_tree import MemoryLog
from kvfold.pipeline.bench.serving.servers.started_server import RunningServer, run_server
from kvfold.plugins.contract.progress import Progress

AT_ONCE, CLIENTS = 8, 12
SEQUENCES = 2  # of the whole context, that the cache holds
SETTLED, SPAN = 1 / 6, 1 / 30  # of the time: when the memory is first looked at, and for how long
GROWTH = 2.0  # percent
NONE = Demand("at most", 0)


async def measure(bench: Bench, progress: Progress) -> Measured:
    """One server, then a process of its own for the cold replies."""
    steps = Steps(progress, 2)
    log = SoakLog(random.Random("soak"))
    cache = bytes_of_sequences(bench.bundle, SEQUENCES)
    async with run_server(bench.server(AT_ONCE, cache), bench.logs) as server:
        load, memory = await _soak(server, bench.soak_seconds, log, steps.next("soaking"))
        after = await wait_for_rest(server)
    steps.next(f"{len(log.kept)} replies again, cold")
    cold = await asyncio.to_thread(cold_replies, bench.bundle, [body for body, _ in log.kept])
    other = sum(text != again for (_, text), again in zip(log.kept, cold, strict=True))
    end = bench.soak_seconds
    spans = (SETTLED * end, (SETTLED + SPAN) * end), ((1 - SPAN) * end, end)
    resident, own = (growth(*(memory.between(*span, own=only) for span in spans)) for only in (False, True))
    return Measured(
        (
            Figure("requests", "", (float(len(load.outcomes)),)),
            Figure("replies and refusals that should not have been", "", (float(len(log.wrong)),), NONE),
            Figure("pages lost", "pages", (lost(after),), NONE),
            Figure(f"of {len(log.kept)} replies, others than cold ones", "", (float(other),), NONE),
            Figure("resident memory, end over start", "%", (resident,)),
            Figure("memory that is no file, end over start", "%", (own,), Demand("at most", GROWTH)),
        ),
        {"soak": (summarise(load),)},
        (f"Soak of {end / 60:.0f} min: {dict(log.done)}.", *log.wrong[:SHOWN]),
    )


async def _soak(
    server: RunningServer, seconds: float, log: SoakLog, progress: Progress
) -> tuple[Load, MemoryLog]:
    memory = MemoryLog(server.tree)
    watching = asyncio.create_task(watch_memory(memory, seconds, progress))
    try:
        load = await closed_loop(server.client, until(soak_jobs(log), seconds), CLIENTS)
    finally:
        watching.cancel()
    return load, memory


def bytes_of_sequences(bundle: Path, count: int) -> int:
    """Of all pools, for so many sequences of the whole context."""
    from kvfold.runtime.bundle import open_bundle
    from kvfold.runtime.engine.engine_files import open_engine
    from kvfold.runtime.engine.slabs import bytes_of_slabs
    from kvfold.runtime.llm.llm import DEFAULT_TARGET
    from kvfold.runtime.memory.budget import pages_of_sequence
    from kvfold.runtime.runtime_config import RuntimeConfig

    files = open_engine(open_bundle(bundle), DEFAULT_TARGET)
    chunk = RuntimeConfig().max_num_batched_tokens
    pages = pages_of_sequence(files.plan, files.config.max_context_length, chunk)
    return count * bytes_of_slabs(files.plan, pages, files.slab_pages)
