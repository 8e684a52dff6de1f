"""A load on a server that the bench started, with what it cost the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvfold.pipeline.bench.serving.client.asks import Job
from kvfold.pipeline.bench.serving.client.load_summary import summarise
from kvfold.pipeline.bench.serving.client.outcome import Load
from kvfold.pipeline.bench.serving.client.run_load import closed_loop
from kvfold.pipeline.bench.serving.scenarios.scenario import heard_by
from kvfold.pipeline.bench.serving.servers.started_server import Endpoint, RunningServer
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.contract.progress import Progress, unheard


@dataclass(frozen=True)
class ServedLoad:
    """A load and its cost.

    Attributes:
        load: every request of it.
        cpu_seconds: of the server's processes.
    """

    load: Load
    cpu_seconds: float


async def serve_all(
    server: Endpoint, jobs: Sequence[Job], at_once: int, progress: Progress = unheard
) -> Load:
    """Do all jobs, so many at once.

    Raises:
        TargetError: a reply is not whole: figures of a server that refuses are no figures.
    """
    load = await closed_loop(server.client, jobs, at_once, heard_by(progress, len(jobs)))
    if len(load.of("complete")) < len(load.outcomes):
        summary = summarise(load)
        raise TargetError(f"{server.title} did not answer all: {summary.endings}, {summary.troubles}")
    return load


async def serve_costed(
    server: RunningServer, jobs: Sequence[Job], at_once: int, progress: Progress = unheard
) -> ServedLoad:
    """The same, with what it cost."""
    before = server.tree.cpu_seconds()
    load = await serve_all(server, jobs, at_once, progress)
    return ServedLoad(load, server.tree.cpu_seconds() - before)
