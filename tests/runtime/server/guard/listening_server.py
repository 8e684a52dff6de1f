"""A real uvicorn on a free port, and sockets that talk to it as badly as a test likes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
import uvloop

from kvfold.runtime.server.guard.connection import GuardedProtocol
from tests.runtime.server.asgi_client import until
from tests.runtime.server.puppet_llm import PuppetLLM
from tests.runtime.server.served import make_server

POST = b"POST /say HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
GET = b"GET /things/1 HTTP/1.1\r\nhost: localhost\r\n"


class Impatient(GuardedProtocol):
    """Limits that a test can wait for."""

    max_connections = 3
    head_seconds = 0.2
    discard_seconds = 0.2
    write_seconds = 0.2


class Connection:
    """A socket and what came of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], Any]:
        """Send, and read one answer."""
        self.writer.write(data)
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), headers, json.loads(body)

    async def closed(self) -> bool:
        """Whether the server ends the connection, in good or bad manners."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True


class Listening:
    """A server and its port."""

    def __init__(self, llm: PuppetLLM, protocol: type[GuardedProtocol]) -> None:
        self.llm = llm
        self.app, self.state = make_server(llm)
        options: dict[str, Any] = {"lifespan": "off", "log_config": None, "access_log": False, "ws": "none"}
        self.uvicorn = uvicorn.Server(uvicorn.Config(self.app, http=protocol, **options))
        self.socket = socket.create_server(("127.0.0.1", 0))

    async def connect(self, receive_bytes: int | None = None) -> Connection:
        client = socket.socket()
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, self.socket.getsockname())
        return Connection(*await asyncio.open_connection(sock=client))

    @property
    def connections(self) -> int:
        return len(self.uvicorn.server_state.connections)


@asynccontextmanager
async def listening(
    llm: PuppetLLM | None = None, protocol: type[GuardedProtocol] = Impatient
) -> AsyncIterator[Listening]:
    server = Listening(llm or PuppetLLM(), protocol)
    serving = asyncio.create_task(server.uvicorn._serve([server.socket]))
    await until(lambda: server.uvicorn.started)
    try:
        yield server
    finally:
        server.uvicorn.force_exit = server.uvicorn.should_exit = True
        await serving


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test(), 30))
