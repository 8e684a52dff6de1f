"""Start a server, wait until it is ready, and end it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from kvfold.pipeline.bench.serving.client.load_client import LoadClient, open_client
from kvfold.pipeline.bench.serving.servers.process_tree import ProcessTree
from kvfold.plugins.contract.errors import TargetError

HOST = "127.0.0.1"
READY_SECONDS = 120.0
EXIT_SECONDS = 60.0
LOOK_SECONDS = 0.05
SHOWN_LINES = 12


@dataclass(frozen=True)
class ServerCommand:
    """How a server is started.

    Attributes:
        title: in tables and progress.
        command: its arguments; `{port}` stands for the port.
        ready: the path that answers 200 once requests are served.
        keeps_alive: whether a connection may be used again after a stream.
    """

    title: str
    command: tuple[str, ...]
    ready: str
    keeps_alive: bool = True


@dataclass(frozen=True)
class Endpoint:
    """A server that answers, whoever started it.

    Attributes:
        title: in tables and progress.
        client: sends requests to it.
    """

    title: str
    client: LoadClient


@dataclass(frozen=True)
class RunningServer(Endpoint):
    """A server that the bench started.

    Attributes:
        tree: its processes.
        process: the one that was started.
        ready: the path that says whether requests are served.
        log: the file that it prints to.
    """

    tree: ProcessTree
    process: subprocess.Popen[bytes]
    ready: str
    log: Path

    def terminate(self) -> None:
        """Ask it to end, as an operator does."""
        self.process.send_signal(signal.SIGTERM)

    async def exit_code(self, seconds: float = EXIT_SECONDS) -> int | None:
        """Wait for its end; None where it does not come in time."""
        end = monotonic() + seconds
        while (code := self.process.poll()) is None and monotonic() < end:
            await asyncio.sleep(LOOK_SECONDS)
        return code


@asynccontextmanager
async def run_server(server: ServerCommand, logs: Path) -> AsyncIterator[RunningServer]:
    """A server for as long as the block lasts, on a free port of this machine.

    Raises:
        TargetError: it ended, or is not ready in time; the message holds the end of what it printed.
    """
    port = free_port()
    log = logs / f"{server.title.replace(' ', '-')}-{port}.log"
    with log.open("wb") as printed:
        command = [part.format(port=port) for part in server.command]
        # A session of its own: Ctrl-C reaches the bench alone, which then ends the server.
        process = subprocess.Popen(
            command,
            stdout=printed,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        async with open_client(f"http://{HOST}:{port}", server.keeps_alive) as client:
            running = RunningServer(
                server.title, client, ProcessTree(process.pid), process, server.ready, log
            )
            await _wait_until_ready(running)
            await client.find_model()
            yield running
    finally:
        _end(process)


@asynccontextmanager
async def reach_server(url: str) -> AsyncIterator[Endpoint]:
    """A server that runs already.

    Raises:
        TargetError: nobody answers, or no model is served.
    """
    async with open_client(url) as client:
        await client.find_model()
        yield Endpoint(url, client)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


async def _wait_until_ready(server: RunningServer) -> None:
    end = monotonic() + READY_SECONDS
    while monotonic() < end:
        if (code := server.process.poll()) is not None:
            raise TargetError(f"{server.title} ended with exit code {code}:\n{_last_lines(server.log)}")
        status, _ = await server.client.get(server.ready)
        if status == 200:
            return
        await asyncio.sleep(LOOK_SECONDS)
    raise TargetError(
        f"{server.title} does not answer {server.ready} with 200 after {READY_SECONDS:.0f} s:\n"
        f"{_last_lines(server.log)}"
    )


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-SHOWN_LINES:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL to all of its session."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
