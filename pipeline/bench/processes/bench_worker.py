"""The worker process: one job, one answer.

It runs in the contender's own Python, which may lack every package of kvfold's.
"""

from __future__ import annotations

import sys
import time
from importlib import metadata
from pathlib import Path

from kvfold.pipeline.bench.contenders import contender_module
from kvfold.pipeline.bench.processes.jobs import Answer, Job, Measure, Prepare, read_job, write_answer
from kvfold.pipeline.bench.workloads.run_workloads import measure
from kvfold.pipeline.bench.workloads.workloads import LOAD, MEMORY, choose_workloads

STATUS = Path("/proc/self/status")


def main() -> None:
    """Entry point: the job is the first argument, the file for its answer the second."""
    text, answer = sys.argv[1:]
    write_answer(do_job(read_job(text)), Path(answer))


def do_job(job: Job) -> Answer:
    """Do one job; whatever the contender raises ends the process."""
    module = contender_module(job.contender)
    values: dict[str, float] = {}
    if isinstance(job, Prepare):
        module.prepare(Path(job.source), Path(job.target))
    elif isinstance(job, Measure):
        values = _measure(job)
    return Answer(installed_version(module.PACKAGE), values)


def installed_version(package: str) -> str | None:
    """Version of a distribution, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _measure(job: Measure) -> dict[str, float]:
    started = time.perf_counter()
    contender = contender_module(job.contender).load(Path(job.model), job.limits)
    load = time.perf_counter() - started
    workloads = choose_workloads(job.workloads, job.context_length)
    values = measure(contender, workloads, job.vocab_size, job.seed) | {LOAD.key: load}
    peak = peak_memory()
    return values if peak is None else values | {MEMORY.key: peak}


def peak_memory() -> float | None:
    """Largest resident set of this process in MiB, mapped files included; None outside of Linux.

    Not getrusage's ru_maxrss: a child starts with its parent's.
    """
    if not STATUS.is_file():
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
