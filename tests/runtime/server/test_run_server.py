"""A server in a process of its own: how it starts, hears signals, and ends."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.root import ROOT
from tests.runtime.server.guard.test_gate import bearer, entry, write

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes the certificates: TLS was not tried"
)


class Process:
    """The server and its port."""

    def __init__(self, options: dict[str, Any], environment: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.popen = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.runtime.server.processes.puppet_server",
                json.dumps({"port": self.port, **options}),
            ],
            cwd=ROOT,
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        self.lines.extend(iter(self.popen.stderr.readline, ""))

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"content-type": "application/json", **headers}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def ready(self, **headers: str) -> int:
        """The status of /health/ready; 0 where nobody listens."""
        try:
            return self.ask("GET", "/health/ready", **headers)[0]
        except (ConnectionError, OSError):
            return 0

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)


@contextmanager
def serving(
    options: dict[str, Any] | None = None, environment: dict[str, str] | None = None
) -> Iterator[Process]:
    process = Process(options or {}, environment or {})
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()


def wait_for(condition: Callable[[], bool], what: str = "") -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def test_it_listens_before_the_model_is_there() -> None:
    with serving({"load_seconds": 1}) as server:
        wait_for(lambda: server.ready() == 503)
        assert "loading" in server.ask("GET", "/health")[1]
        assert server.ask("POST", "/say", "{}")[0] == 503
        assert server.ask("GET", "/health/live")[0] == 200
        wait_for(lambda: server.ready() == 200)
        assert server.ask("POST", "/say", "{}") == (200, '{"text":"' + "x" * 20 + '"}')


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_replies_finish_and_takes_no_more(number: int, pool: ThreadPoolExecutor) -> None:
    with serving() as server:
        wait_for(lambda: server.ready() == 200)
        streams = [pool.submit(server.ask, "POST", "/say", '{"stream": true}') for _ in range(3)]
        time.sleep(0.3)
        server.signal(number)
        wait_for(lambda: server.ready() == 503)
        status, body = server.ask("POST", "/say", "{}")
        assert status == 503 and "shutting down" in body
        for stream in streams:
            assert stream.result() == (200, "data: x\n\n" * 20)
        assert server.popen.wait(20) == 0


def test_what_does_not_finish_in_time_is_cancelled_and_told_so(pool: ThreadPoolExecutor) -> None:
    with serving({"drain_seconds": 0.2}) as server:
        wait_for(lambda: server.ready() == 200)
        stream = pool.submit(server.ask, "POST", "/say", '{"stream": true}')
        time.sleep(0.2)
        server.signal(signal.SIGTERM)
        status, body = stream.result()
        assert status == 200 and 0 < body.count("data: x") < 20
        assert server.popen.wait(20) == 0


def test_a_second_signal_ends_at_once(pool: ThreadPoolExecutor) -> None:
    with serving({"drain_seconds": 60}) as server:
        wait_for(lambda: server.ready() == 200)
        requests = [pool.submit(server.ask, "POST", "/say", "{}") for _ in range(2)]
        time.sleep(0.2)
        server.signal(signal.SIGTERM)
        wait_for(lambda: "SIGTERM" in server.log)
        server.signal(signal.SIGTERM)
        assert server.popen.wait(10) == 128 + signal.SIGTERM
        assert all(isinstance(request.exception(), (ConnectionError, OSError)) for request in requests)


def test_an_engine_that_hangs_cannot_keep_the_process() -> None:
    with serving({"hangs": True, "drain_seconds": 0}) as server:
        wait_for(lambda: server.ready() == 200)
        server.signal(signal.SIGTERM)
        assert server.popen.wait(20) == 3


def test_a_signal_while_it_loads_ends_it_at_once() -> None:
    with serving({"load_seconds": 60}) as server:
        wait_for(lambda: server.ready() == 503)
        server.signal(signal.SIGTERM)
        assert server.popen.wait(20) == 0


def test_a_model_that_cannot_be_read_ends_it_with_its_error() -> None:
    with serving({"no_bundle": True}) as server:
        assert server.popen.wait(20) == 1
        wait_for(lambda: "BundleError: there is no bundle" in server.log)


def test_an_engine_that_fails_tells_every_stream_and_ends_the_process(pool: ThreadPoolExecutor) -> None:
    with serving({"fails_after": 1.5}) as server:
        wait_for(lambda: server.ready() == 200)
        time.sleep(0.8)
        streams = [pool.submit(server.ask, "POST", "/say", '{"stream": true}') for _ in range(3)]
        for stream in streams:
            status, body = stream.result()
            assert status == 200 and "the engine ran out of memory" in body.splitlines()[-2]
        assert server.popen.wait(20) == 1
        wait_for(lambda: "KvfoldError: the engine ran out of memory" in server.log)


def test_sighup_reads_the_keys_again(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.json", [entry("alice")])
    with serving({"paths": {"keys": str(path)}}) as server:
        wait_for(lambda: server.ready(**bearer("alice")) == 200)
        assert server.ask("GET", "/version", **bearer("alice"))[0] == 200
        write(path, [entry("bob")])
        server.signal(signal.SIGHUP)
        wait_for(lambda: server.ask("GET", "/version", **bearer("bob"))[0] == 200)
        assert server.ask("GET", "/version", **bearer("alice"))[0] == 401


def test_systemd_is_told_when_it_is_ready_alive_and_stopping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "500000"}
        with serving(environment=environment) as server:
            assert systemd.recv(100) == b"READY=1"
            assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            server.signal(signal.SIGTERM)
            while (said := systemd.recv(100)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1"
            assert server.popen.wait(20) == 0


def test_a_port_in_use_says_so() -> None:
    with serving() as server:
        wait_for(lambda: server.ready() == 200)
        with serving({"port": server.port}) as second:
            assert second.popen.wait(20) == 1
            wait_for(lambda: "cannot be listened on: Address already in use" in second.log)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own, and its key."""
    folder.mkdir()
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@needs_openssl
def test_tls_serves_https_and_a_bad_certificate_says_so(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path / "one")
    with serving({"paths": {"tls_cert": str(cert), "tls_key": str(key)}}) as server:
        wait_for(lambda: "listening" in server.log)
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection("localhost", server.port, timeout=20, context=context)
        connection.request("GET", "/health/live")
        assert connection.getresponse().status == 200
        connection.close()
        connection.request("POST", "/say", b" " * 3 * 2**20, {"content-type": "application/json"})
        assert (answer := connection.getresponse()).status == 413 and answer.getheader(
            "connection"
        ) == "close"
        connection.close()
    with serving({"paths": {"tls_cert": str(key), "tls_key": str(key)}}) as server:
        assert server.popen.wait(20) == 1
        wait_for(lambda: "cannot be set up" in server.log)


@needs_openssl
def test_sighup_shows_a_renewed_certificate_and_keeps_it_where_the_next_is_bad(tmp_path: Path) -> None:
    old, new = make_certificate(tmp_path / "old"), make_certificate(tmp_path / "new")
    first, second = (cert.read_text() for cert, _ in (old, new))
    with serving({"paths": {"tls_cert": str(old[0]), "tls_key": str(old[1])}}) as server:
        wait_for(lambda: "serving" in server.log)

        def shown() -> str:
            return ssl.get_server_certificate(("localhost", server.port), timeout=20)

        def handshake() -> http.client.HTTPSConnection:
            context = ssl.create_default_context(cadata=first)
            return http.client.HTTPSConnection("localhost", server.port, timeout=20, context=context)

        assert shown() == first
        kept = handshake()
        kept.connect()
        for source, target in zip(new, old, strict=True):
            shutil.copy(source, target)
        assert shown() == first, "nothing is read by itself"
        server.signal(signal.SIGHUP)
        wait_for(lambda: shown() == second)
        kept.request("GET", "/health/live")
        assert kept.getresponse().status == 200, "a connection from before goes on"
        kept.close()
        old[0].write_text(first)
        server.signal(signal.SIGHUP)
        wait_for(lambda: "the certificate from before stays" in server.log)
        assert shown() == second
