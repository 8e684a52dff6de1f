"""A cluster on Ray, in a process of its own that lives until SIGTERM.

`python -m tests.runtime.cluster.ray_cluster FOLDER PORT TINY`; TINY is JSON: what replicas are (TinyReplica).
FOLDER has the settings. A replica writes a file into it, named by its process.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfold.runtime.cluster.build_cluster import build_application
from kvfold.runtime.cluster.cluster_settings import ClusterSettings, read_cluster_settings
from kvfold.runtime.server.start.run_server import Loaded
from tests.root import ROOT
from tests.runtime.cluster.tiny_replica import TinyReplica
from tests.runtime.server.processes.real_server import MODEL, write_tokenizer

OBJECT_STORE_BYTES = 80_000_000
START_SECONDS = 150.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "OMP_NUM_THREADS": "1"}
# A busy machine starts a proxy in more than Ray's 5 s.
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "50", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "50"}


@dataclass(frozen=True)
class NamedReplica:
    """Loads a tiny replica, and says which process has it."""

    tiny: TinyReplica

    def __call__(self, settings: ClusterSettings) -> Loaded:
        """Load it."""
        loaded = self.tiny(settings)
        (settings.bundle / f"{os.getpid()}.replica").touch()
        return loaded


@dataclass
class RayCluster:
    """A cluster that runs.

    Attributes:
        folder: of its bundle.
        port: of Ray's proxy.
        settings: of what was deployed last.
    """

    folder: Path
    port: int
    settings: dict[str, Any]

    def deploy(self, **changed: Any) -> None:
        """Replace what runs, and do not wait for that."""
        self.settings |= changed
        (self.folder / "settings.json").write_text(json.dumps(self.settings))
        (self.folder / "ready").unlink(missing_ok=True)

    @property
    def deployed(self) -> bool:
        """Whether all of the last deployment runs."""
        return (self.folder / "ready").exists()

    def replicas(self) -> set[int]:
        """Processes that loaded an engine, and live."""
        found = {int(path.stem) for path in self.folder.glob("*.replica")}
        return {pid for pid in found if Path(f"/proc/{pid}").exists()}

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str) -> tuple[int, Any]:
        """A request without a body: its status, and what JSON says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


@contextmanager
def ray_cluster(folder: Path, port: int, tiny: TinyReplica, **settings: Any) -> Iterator[RayCluster]:
    """A cluster with these settings; it has ended afterwards."""
    write_tokenizer(folder)
    told = {"bundle": str(folder), "model_name": MODEL, "cpus": 0.1, "drain_seconds": 5}
    cluster = RayCluster(folder, port, told)
    cluster.deploy(**settings)
    arguments = [str(folder), str(port), json.dumps({"pages": tiny.pages, "pause": tiny.pause})]
    environment = {
        **os.environ,
        **QUIET,
        **PATIENT,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }
    with (folder / "log").open("wb") as log:
        popen = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not cluster.deployed:
            assert popen.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-8000:]
            time.sleep(0.2)
        yield cluster
    finally:
        popen.terminate()
        popen.wait(60)


def main(folder: Path, port: int, tiny: dict[str, Any]) -> None:
    """Run one until SIGTERM, and deploy it anew when the file `ready` is gone."""
    import ray
    from ray import serve

    ended = threading.Event()
    ray.init(num_cpus=2, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        while not ended.is_set():
            settings = read_cluster_settings(json.loads((folder / "settings.json").read_text()))
            serve.run(build_application(settings, NamedReplica(TinyReplica(**tiny))), name="kvfold")
            (folder / "ready").touch()
            while not ended.wait(0.2) and (folder / "ready").exists():
                pass
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
