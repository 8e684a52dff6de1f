"""What a scenario is given, and how it tells its progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from kvfold.pipeline.bench.serving.serve_results import Measured
from kvfold.pipeline.bench.serving.servers.kvfold_server import (
    KvfoldOptions,
    kvfold_server,
    zero_cost_server,
)
from kvfold.pipeline.bench.serving.servers.llama_server import LlamaServer
from kvfold.pipeline.bench.serving.servers.started_server import ServerCommand
from kvfold.plugins.contract.progress import Progress, part


@dataclass(frozen=True)
class Bench:
    """What scenarios share.

    Attributes:
        bundle: kvfold's, with an engine for the CPU.
        vocab_size: of its model.
        beside: other bundles of the same model.
        peer: llama.cpp's server; None where it is not compared.
        urls: other servers of the same model, that run already.
        rounds: of each measurement; servers of one round run one after the other.
        threads: of every engine; 0 for each one's default.
        soak_seconds: how long the soak takes.
        trace: arrivals to replay; None where there are none.
        logs: where servers print to.
    """

    bundle: Path
    vocab_size: int
    logs: Path
    beside: tuple[Path, ...] = ()
    peer: LlamaServer | None = None
    urls: tuple[str, ...] = ()
    rounds: int = 3
    threads: int = 0
    soak_seconds: float = 1800.0
    trace: Path | None = None

    def server(
        self, at_once: int, kv_cache_bytes: int | None = None, state_dir: Path | None = None
    ) -> ServerCommand:
        """kvfold over the bundle, for so many requests at once."""
        options = KvfoldOptions(at_once, kv_cache_bytes, self.threads, state_dir)
        return kvfold_server(self.bundle, options)

    def zero_cost(self, at_once: int, pause: float = 0.0) -> ServerCommand:
        """kvfold over an engine that computes nothing, and pauses so many seconds a step."""
        return zero_cost_server(self.bundle, KvfoldOptions(at_once), pause)


# Answers a scenario, and tells how far it is.
Measure = Callable[[Bench, Progress], Awaitable[Measured]]


class Steps:
    """Tells the progress of work that is so many steps of about the same length."""

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress = progress
        self._count = count
        self._done = 0

    def next(self, doing: str) -> Progress:
        """The next step begins; it may tell how far it is itself."""
        step = part(self._progress, self._done / self._count, 1 / self._count, doing)
        self._done += 1
        step(0.0)
        return step


def heard_by(progress: Progress, jobs: int) -> Callable[[int], None]:
    """What a load tells, as progress."""
    return lambda done: progress(done / jobs)
