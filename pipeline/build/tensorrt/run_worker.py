"""Run the building process: progress as it comes; its failure, in whatever form, as an error with its log."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvfold.pipeline.build.tensorrt import build_worker
from kvfold.pipeline.build.tensorrt.build_job import BuildJob, BuildResult, WorkerMessage
from kvfold.pipeline.build.tensorrt.read_log import describe_failure
from kvfold.plugins.contract.errors import KernelError, TargetError
from kvfold.plugins.tensorrt.library_path import environment_for


def run_worker(
    job: BuildJob, log: Path, log_of_failure: Path, report: Callable[[float], None]
) -> BuildResult:
    """Build a plan in a process of its own.

    Args:
        job: what to build.
        log: gets everything that the library says.
        log_of_failure: where that is kept when the build fails.
        report: told the fraction done.

    Raises:
        KernelError: a node is not what the plugin computes.
        TargetError: the library refused the graph, or crashed; its errors and the nodes they name are quoted.
    """
    log_of_failure.unlink(missing_ok=True)
    result, error = None, None
    with tempfile.TemporaryDirectory() as links, log.open("w") as stderr:
        environment = environment_for(job.library, Path(links))
        environment["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(job.library == "tensorrt_rtx"))
        command = [sys.executable, "-P", "-m", build_worker.__name__]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=stderr
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError), process.stdin:  # it may have crashed at once; see below
                process.stdin.write(job.model_dump_json())
            for line in process.stdout:
                message = WorkerMessage.model_validate_json(line)
                result, error = message.result or result, message.error or error
                if message.progress is not None:
                    report(message.progress)
    if result is not None and process.returncode == 0:
        return result
    shutil.copyfile(log, log_of_failure)
    if error is not None:
        raise KernelError(f"{error}\nthe whole log is in {log_of_failure}")
    code = process.returncode
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise TargetError(
        f"building with {job.library} failed, its process {ended}:\n{describe_failure(log.read_text())}\n"
        f"the whole log is in {log_of_failure}"
    )
