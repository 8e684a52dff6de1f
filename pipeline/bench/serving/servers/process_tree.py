"""What a process and its children cost: CPU time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import perf_counter

import psutil

MIB = 1 << 20


@dataclass(frozen=True)
class ProcessTree:
    """A process and all that it started and still runs."""

    pid: int

    def cpu_seconds(self) -> float:
        """User and system time so far; only what others leave alone can be compared by clocks on the wall."""
        return sum(_cpu(process) for process in self._processes())

    def rss_mib(self) -> float:
        """Resident memory now; pages that two processes share count twice."""
        return sum(_rss(process) for process in self._processes()) / MIB

    def _processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _cpu(process: psutil.Process) -> float:
    """Of children that ended too, once they were waited for."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


@dataclass
class MemoryLog:
    """Resident memory over time.

    Attributes:
        tree: whose.
        started: seconds of `time.perf_counter`.
        samples: seconds since then, and MiB.
    """

    tree: ProcessTree
    started: float = field(default_factory=perf_counter)
    samples: list[tuple[float, float]] = field(default_factory=list)

    async def watch(self, every: float) -> AsyncIterator[tuple[float, float]]:
        """Look every so many seconds, until cancelled; each sample."""
        while True:
            self.samples.append((perf_counter() - self.started, self.tree.rss_mib()))
            yield self.samples[-1]
            await asyncio.sleep(every)

    def between(self, start: float, end: float) -> list[float]:
        """MiB of the samples in a span of seconds."""
        return [mib for at, mib in self.samples if start <= at < end]
