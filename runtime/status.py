"""What other processes may know of a running LLM: its metrics, once a second, in a small file.

`kvfold monitor` reads the files of all running engines of this user. A file is replaced whole, so a
reader never sees half of one, and a process that was killed leaves a file whose pid is dead.
"""

from __future__ import annotations

import getpass
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.metrics import CacheMetrics, Metrics, PoolUsage

if TYPE_CHECKING:
    from kvfold.runtime.llm.llm import LLM

INTERVAL_SECONDS = 1.0


@dataclass(frozen=True)
class EngineStatus:
    """One running LLM.

    Attributes:
        pid: its process.
        name: what it was published as, such as its bundle's folder.
        written: clock of the snapshot, seconds since the epoch.
        metrics: counters since the LLM was made, and pages now.
    """

    pid: int
    name: str
    written: float
    metrics: Metrics


@contextmanager
def published(llm: LLM, name: str) -> Iterator[None]:
    """Publish an LLM's metrics from a thread of its own until the block ends.

    The thread only reads; counters of one snapshot may be a step apart.

    Example:
        with published(llm, "my service"):
            serve(llm)
    """
    folder = status_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.getpid()}-{id(llm):x}.json"
    ended = threading.Event()

    def write() -> None:
        while True:
            _replace(path, EngineStatus(os.getpid(), name, time.time(), llm.metrics))
            if ended.wait(INTERVAL_SECONDS):
                return

    thread = threading.Thread(target=write, name="kvfold status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def read_statuses() -> list[EngineStatus]:
    """Every LLM of this user that is published now; files of dead processes are removed."""
    statuses = []
    for path in sorted(status_folder().glob("*.json")):
        try:
            status = _parse(path.read_text())
        except (FileNotFoundError, TypeError, KeyError):  # it ended this moment, or tells other things
            continue
        if psutil.pid_exists(status.pid):
            statuses.append(status)
        else:
            path.unlink(missing_ok=True)
    return statuses


def status_folder() -> Path:
    """Where this user's processes publish; the version in its name keeps formats apart."""
    return Path(tempfile.gettempdir()) / f"kvfold-{VERSION}-{getpass.getuser()}"


def _replace(path: Path, status: EngineStatus) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(asdict(status)))
    aside.replace(path)


def _parse(text: str) -> EngineStatus:
    content = json.loads(text)
    metrics = content.pop("metrics")
    pools = {name: PoolUsage(**pool) for name, pool in metrics.pop("pools").items()}
    return EngineStatus(
        metrics=Metrics(cache=CacheMetrics(**metrics.pop("cache")), pools=pools, **metrics), **content
    )
