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

    def own_mib(self) -> float:
        """Of that, what is no file; weights count there as they are first read, and cost nobody memory."""
        return sum(_rss(process, files=False) for process in self._processes()) / MIB

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


def _rss(process: psutil.Process, files: bool = True) -> int:
    try:
        memory = process.memory_info()
        return int(memory.rss if files else memory.rss - memory.shared)
    except psutil.NoSuchProcess:
        return 0


@dataclass
class MemoryLog:
    """Resident memory over time.

    Attributes:
        tree: whose.
        started: seconds of `time.perf_counter`.
        samples: seconds since then, resident MiB, and those of them that are no files'.
    """

    tree: ProcessTree
    started: float = field(default_factory=perf_counter)
    samples: list[tuple[float, float, float]] = field(default_factory=list)

    async def watch(self, every: float) -> AsyncIterator[tuple[float, float]]:
        """Look every so many seconds, until cancelled; the seconds and resident MiB of each sample."""
        while True:
            tree = self.tree
            self.samples.append((perf_counter() - self.started, tree.rss_mib(), tree.own_mib()))
            yield self.samples[-1][:2]
            await asyncio.sleep(every)

    def between(self, start: float, end: float, own: bool = False) -> list[float]:
        """MiB of the samples in a span of seconds: resident, or of these what is no file."""
        return [sample[2 if own else 1] for sample in self.samples if start <= sample[0] < end]
