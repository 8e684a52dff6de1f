"""Start a worker in a Python and wait for its answer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import kvfold
from kvfold.pipeline.bench.processes.jobs import Answer, Job, read_answer, write_job

ROOT = Path(kvfold.__file__).parents[1]
# The peer's Python must see our worker but none of our environment's packages, so the path that leads to
# the worker is taken away again; kvfold's own Python keeps it.
BOOTSTRAP = (
    "import sys; sys.path.insert(0, {root!r}); from kvfold.pipeline.bench.processes import bench_worker; "
    "{forget}bench_worker.main()"
)
FORGET = "sys.path.pop(0); "
SHOWN_LINES = 12


class WorkerError(Exception):
    """A worker ended without an answer; the message holds the end of what it printed."""


def run_job(job: Job, python: Path) -> Answer:
    """Run one job in a fresh process of `python`.

    Raises:
        WorkerError: the process failed, or ended without an answer.
    """
    own = python == Path(sys.executable)
    code = BOOTSTRAP.format(root=str(ROOT), forget="" if own else FORGET)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [str(python), "-c", code, write_job(job), str(answer)]
        # errors="replace": engines print progress bars in whatever encoding they like.
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if result.returncode or not answer.is_file():
            printed = [
                line
                for stream in (result.stdout, result.stderr)
                for line in stream.strip().splitlines()[-SHOWN_LINES:]
            ]
            raise WorkerError(f"exit code {result.returncode}:\n" + "\n".join(printed))
        return read_answer(answer)
