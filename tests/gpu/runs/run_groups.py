"""Runs groups as processes, some side by side, until all ended or time is up; says where it is."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from tests.gpu.runs.find_gpu import GpuFacts
from tests.gpu.runs.results import GroupResult, RunResult, read_rows

POLL_SECONDS, SAY_SECONDS, END_SECONDS = 0.2, 5.0, 5.0
PACKAGES = (
    "torch",
    "triton",
    "onnxruntime-gpu",
    "onnxruntime",
    "cuda-bindings",
    "tensorrt",
    "tensorrt-rtx-cu13",
)
ROOT = Path(__file__).parents[3]
NO_GPU = 3  # exit code: nothing was found, so nothing is right or wrong


@dataclass(frozen=True)
class Group:
    """A process.

    Attributes:
        name: of the group.
        command: what it runs; the path that it appends rows to comes last.
        needs: modules without which it is skipped.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Modules that cannot be imported here."""
        return [name for name in self.needs if not _is_there(name)]


class CutError(Exception):
    """The run was told to end."""


class Run:
    """One run over groups.

    Args:
        title: of its files.
        groups: what to run.
        folder: for the files.
        seconds: after which what still runs is ended.
        together: processes at once.
        threads: of each process, for torch and BLAS.
        say: takes a line for the user.
    """

    def __init__(
        self,
        title: str,
        groups: Sequence[Group],
        folder: Path,
        seconds: float,
        together: int,
        threads: int,
        say: Callable[[str], None],
    ) -> None:
        self._groups, self._folder, self._seconds = groups, folder, seconds
        self._together, self._threads, self._say = together, threads, say
        self.result = RunResult(title, packages=package_versions())
        self.result.groups = [GroupResult(group.name) for group in groups]
        self._running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self._start = self._said = time.monotonic()

    def run(self, gpu: GpuFacts | str) -> int:
        """Run all groups; the exit code.

        0: none failed; 1: one did, or was cut; NO_GPU: there is no GPU, and nothing ran.
        """
        if isinstance(gpu, str):
            self.result.problem = gpu
            for result in self.result.groups:
                result.outcome, result.why = "skipped", gpu
            self._write()
            self._say(f"{self.result.title}: {gpu}; nothing was run")
            return NO_GPU
        self.result.gpu = str(gpu)
        self._say(f"{self.result.title} on {gpu}: {len(self._groups)} groups, at most {self._seconds:.0f} s")
        with tempfile.TemporaryDirectory() as scratch:
            try:
                self._run_all(Path(scratch))
            except (KeyboardInterrupt, CutError):
                self._say("interrupted")
            finally:
                self._end_all(Path(scratch))
        bad = [each.name for each in self.result.groups if each.outcome not in ("passed", "skipped")]
        self._say(
            f"wrote {self._folder / self.result.title}.json and .md" + (f"; not passed: {bad}" if bad else "")
        )
        return 1 if bad else 0

    def _run_all(self, scratch: Path) -> None:
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            waiting = list(range(len(self._groups)))
            while waiting or self._running:
                while waiting and len(self._running) < self._together:
                    self._begin(waiting.pop(0), scratch)
                time.sleep(POLL_SECONDS)
                for index in [*self._running]:
                    self._look(index, scratch)
                if time.monotonic() - self._start > self._seconds:
                    return
                self._say_where(len(waiting))
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _begin(self, index: int, scratch: Path) -> None:
        group, result = self._groups[index], self.result.groups[index]
        if missing := group.missing():
            result.outcome, result.why = "skipped", f"{', '.join(missing)} cannot be imported"
            self._ended(result)
            return
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, str(self._threads))
        with (scratch / f"{index}.log").open("wb") as log:
            process = subprocess.Popen(
                [*group.command, str(scratch / f"{index}.jsonl")],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        result.outcome = "running"
        self._running[index] = process, time.monotonic()

    def _look(self, index: int, scratch: Path) -> None:
        """Take what a group has found so far, and its end."""
        (process, begun), result = self._running[index], self.result.groups[index]
        code = process.poll()
        result.rows = read_rows(scratch / f"{index}.jsonl")
        result.seconds = time.monotonic() - begun
        if code is None:
            return
        del self._running[index]
        ran = not result.rows or any(row.outcome != "skipped" for row in result.rows)
        result.outcome = "failed" if code else "passed" if ran else "skipped"
        if code:
            tail = (scratch / f"{index}.log").read_text(errors="replace").strip().splitlines()[-12:]
            result.why = f"exit code {code}: " + " / ".join(tail)
        self._ended(result)

    def _ended(self, result: GroupResult) -> None:
        why = f": {result.why[:300]}" if result.why else ""
        self._say(f"[{self._spent():4.0f} s] {result.name}: {result.outcome}, {len(result.rows)} rows{why}")
        self._write()

    def _say_where(self, waiting: int) -> None:
        if time.monotonic() - self._said < SAY_SECONDS:
            return
        self._said = time.monotonic()
        at = ", ".join(
            f"{self.result.groups[index].name} ({len(self.result.groups[index].rows)} rows)"
            for index in self._running
        )
        left = self._seconds - self._spent()
        self._say(f"[{self._spent():4.0f} s] running {at}; {waiting} wait; at most {left:.0f} s more")
        self._write()

    def _end_all(self, scratch: Path) -> None:
        """End what still runs, each with what it started, and keep its rows."""
        for index, (process, _) in self._running.items():
            _end(process)
            result = self.result.groups[index]
            result.rows = read_rows(scratch / f"{index}.jsonl")
            result.outcome, result.why = "cut", "time was up"
        self._running.clear()
        for result in self.result.groups:
            if result.outcome == "waiting":
                result.outcome, result.why = "cut", "time was up before it began"
        self._write()

    def _write(self) -> None:
        self.result.seconds = self._spent()
        self.result.write(self._folder)

    def _spent(self) -> float:
        return time.monotonic() - self._start


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what is run."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise CutError


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process group that this run started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of its parent package
        return False
