"""A server as a child of a test: started, asked, looked at, ended."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.root import ROOT

USED = re.compile(r'kvfold:pool_pages\{[^}]*state="used"\} (\S+)')


class ServerProcess:
    """A server that listens.

    Attributes:
        folder: has its log and its tokenizer.
        port: of 127.0.0.1.
        popen: the process.
    """

    def __init__(self, folder: Path, keys: Path | None = None, module: str = "real_server") -> None:
        """Start a module of this folder, and wait until it is ready."""
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        command = [sys.executable, "-m", f"{__package__}.{module}"]
        arguments = [*command, str(folder), str(self.port), *([] if keys is None else [str(keys)])]
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                arguments, cwd=ROOT, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        self._wait_for_model()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    @property
    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text()

    def ask(
        self, method: str, path: str, value: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """A request and its answer: status and body; a value goes as JSON, bytes as they are."""
        body = value if isinstance(value, bytes | None) else json.dumps(value).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def used_pages(self) -> float:
        """Pages that requests and sessions hold."""
        found = USED.findall(self.ask("GET", "/metrics")[1].decode())
        assert found
        return sum(map(float, found))

    def wait_until_idle(self) -> None:
        """Until nothing holds a page, which must not take long."""
        end = time.monotonic() + 30
        while self.used_pages():
            assert time.monotonic() < end, "pages are held, and nobody is there"
            time.sleep(0.05)

    def stop(self) -> int:
        """End it as an operator does; its exit status says whether its pages are all there."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(60)

    def _wait_for_model(self) -> None:
        end = time.monotonic() + 120
        while self.popen.poll() is None and time.monotonic() < end:
            try:
                if self.ask("GET", "/health/live")[0] == 200 and "serving" in self.log:
                    return
            except OSError:
                time.sleep(0.05)
        self.popen.kill()
        raise AssertionError(f"the server does not start: {self.log}")


@contextmanager
def real_server(folder: Path, keys: Path | None = None) -> Iterator[ServerProcess]:
    """A server for a test; what it holds at the end must be nothing."""
    server = ServerProcess(folder, keys)
    try:
        yield server
        assert server.popen.poll() is None, server.log[-4000:]
        assert server.stop() == 0, server.log[-4000:]
    finally:
        server.popen.kill()
        server.popen.wait()
