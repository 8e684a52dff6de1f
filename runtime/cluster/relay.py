"""Relay: an ASGI application without an engine, between clients and replicas, so that a replica may die."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from kvfold.runtime.cluster.placement import Asked
from kvfold.runtime.cluster.read_route import read_route
from kvfold.runtime.cluster.resumable_stream import UNAVAILABLE, ResumableStream
from kvfold.runtime.server.http import (
    MAX_BODY_BYTES,
    HttpError,
    Message,
    Receive,
    Scope,
    Send,
    openai_error,
    openai_error_event,
)
from kvfold.runtime.server.relayed import RELAY_HEADER
from kvfold.runtime.server.streaming import body

if TYPE_CHECKING:
    import aiohttp

LOG = logging.getLogger("kvfold.relay")
BUSY, CONFLICT = 429, 409
REFUSALS = (BUSY, UNAVAILABLE)
CONNECT_SECONDS = 3.0
# Between two looks for another replica, where all that there are were tried.
LOOK_SECONDS = 0.25
RETRY_SECONDS = 5
_OF_A_CONNECTION = {
    *("connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade", "expect"),
    RELAY_HEADER,
}


@dataclass(frozen=True)
class Chosen:
    """A replica that has a place for a request.

    Attributes:
        name: Ray's.
        address: host and port of its server.
    """

    name: str
    address: str


# Finds a replica; the place is held as long as the context lasts. Raises HttpError where there is none.
Choose = Callable[[Asked], AbstractAsyncContextManager[Chosen]]


class Relay:
    """What clients' requests come to."""

    def __init__(self, choose: Choose, relay_key: str, patience: float) -> None:
        """Looks for a replica for so many seconds; `relay_key` is what replicas know it by."""
        self.choose = choose
        self.patience = patience
        self.relay_key = relay_key
        self._client: aiohttp.ClientSession | None = None

    @property
    def client(self) -> aiohttp.ClientSession:
        """To ask replicas with."""
        import aiohttp

        if self._client is None:
            # A machine that vanished is found by the system's probes: replies may be silent for long.
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, socket_factory=_probed_socket),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
            )
        return self._client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        try:
            content = await _read_body(receive)
        except HttpError as error:
            await _send_error(send, error)
            return
        if content is None:
            return
        passing = asyncio.create_task(Passage(self, scope, content, send).run())
        leaving = asyncio.create_task(_wait_until_gone(receive))
        try:
            await asyncio.wait((passing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                await passing
        finally:
            passing.cancel()
            leaving.cancel()
            await asyncio.gather(passing, leaving, return_exceptions=True)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._client is not None:
            await self._client.close()
        await send({"type": "lifespan.shutdown.complete"})


class Passage:
    """One request on its way through a relay."""

    def __init__(self, relay: Relay, scope: Scope, content: bytes, send: Send) -> None:
        """Nothing was sent yet."""
        self._relay = relay
        self._scope = scope
        self._send = send
        self._path: str = scope["path"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._read = read_route(scope["method"], self._path, headers, content)
        kept = {name: value for name, value in headers.items() if name not in _OF_A_CONNECTION}
        self._headers = {"x-request-id": uuid4().hex, **kept, RELAY_HEADER: relay.relay_key}
        self._stream = None if self._read.relayed is None else ResumableStream(self._read.relayed)
        self._head_sent = False
        self._refusal: HttpError | None = None
        self._tried: list[str] = []

    async def run(self) -> None:
        """From replica to replica, until one has answered all of it."""
        end = time.monotonic() + self._relay.patience
        try:
            while not await self._try_one(end):
                pass
        except HttpError as error:
            await self._give_up(error)

    async def _try_one(self, end: float) -> bool:
        """Whether a replica answered to the end; raises HttpError where there is none for it."""
        asked = Asked(self._read.key, self._read.tokens, tuple(self._tried))
        try:
            async with asyncio.timeout_at(_loop_time(end)) as waiting, self._relay.choose(asked) as replica:
                waiting.reschedule(None)
                if replica.name not in self._tried:
                    self._tried.append(replica.name)
                    return await self._ask(replica)
        except TimeoutError:
            raise self._refusal or _nobody() from None
        if time.monotonic() > end or (self._refusal is not None and not self._head_sent):
            raise self._refusal or _nobody()
        self._tried.clear()
        await asyncio.sleep(LOOK_SECONDS)
        return False

    async def _ask(self, replica: Chosen) -> bool:
        """Whether it answered to the end."""
        import aiohttp

        try:
            return await self._exchange(replica)
        except (aiohttp.ClientError, OSError) as error:
            told = self._headers["x-request-id"], replica.name, type(error).__name__
            LOG.warning("%s: replica %s was lost (%s)", *told)
            return False

    async def _exchange(self, replica: Chosen) -> bool:
        stream = self._stream
        if stream is not None:
            stream.start_over()
        content = self._read.body_for(None if stream is None else stream.relayed)
        url = f"http://{replica.address}{self._target()}"
        async with self._relay.client.request(
            self._scope["method"], url, headers=self._headers, data=content or None, allow_redirects=False
        ) as response:
            if response.status == CONFLICT and len(self._tried) > 1:
                await response.read()  # the session's last replica is not quite dead yet
            elif response.status in REFUSALS:
                self._refusal = HttpError(
                    response.status,
                    (await response.read()).decode(errors="replace"),
                    headers={"retry-after": response.headers.get("retry-after", str(RETRY_SECONDS))},
                )
            elif response.content_type == "text/event-stream":
                if await self._pass_stream(response):
                    return True
            elif self._head_sent:
                raise HttpError(500, "the stream could not go on elsewhere")
            else:
                whole = await response.read()
                await self._send_head(response, len(whole))
                await self._send(body(whole, more=False))
                return True
        return False

    async def _pass_stream(self, response: aiohttp.ClientResponse) -> bool:
        """Whether the stream came to its end."""
        import aiohttp

        stream = self._stream
        if not self._head_sent:
            await self._send_head(response, None)
        try:
            async for data in response.content.iter_any():
                given = data if stream is None else stream.feed(data)
                if given:
                    await self._send(body(given))
                if stream is not None and stream.failed:
                    return False
        except aiohttp.ClientError:
            if stream is None or not stream.ended:
                raise
        if stream is not None and not stream.ended:
            return False
        await self._send(body(b"", more=False))
        return True

    async def _send_head(self, response: aiohttp.ClientResponse, length: int | None) -> None:
        headers = [
            (name.lower(), value)
            for name, value in response.raw_headers
            if name.lower().decode("latin-1") not in _OF_A_CONNECTION
        ]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        self._head_sent = True
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})

    async def _give_up(self, error: HttpError) -> None:
        if self._head_sent:
            await self._send(body(openai_error_event(error)))
            await self._send(body(b"", more=False))
        elif error is self._refusal:
            await _send_whole(self._send, error.status, error.message.encode(), error.headers)
        else:
            await _send_error(self._send, error)

    def _target(self) -> str:
        query = self._scope["query_string"].decode("latin-1")
        path: str = self._scope["raw_path"].decode("latin-1")
        return f"{path}?{query}" if query else path


def _nobody() -> HttpError:
    return HttpError(
        UNAVAILABLE,
        "no replica could be reached; try again",
        code="no_replica",
        headers={"retry-after": str(RETRY_SECONDS)},
    )


def _loop_time(monotonic: float) -> float:
    return asyncio.get_running_loop().time() + monotonic - time.monotonic()


async def _read_body(receive: Receive) -> bytes | None:
    """All of it; None where the client left before its end. Raises HttpError 413."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > MAX_BODY_BYTES:
            raise HttpError(413, f"the body is longer than {MAX_BODY_BYTES} bytes; send less")
        if not message.get("more_body"):
            return b"".join(parts)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_error(send: Send, error: HttpError) -> None:
    await _send_whole(send, error.status, msgspec.json.encode(openai_error(error)), error.headers)


async def _send_whole(send: Send, status: int, content: bytes, headers: Mapping[str, str]) -> None:
    lines = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in lines.items()]
    head: Message = {"type": "http.response.start", "status": status, "headers": encoded}
    await send(head)
    await send(body(content, more=False))


def _probed_socket(address: Any) -> Any:
    """A socket whose peer the system asks for a sign of life, and gives up within half a minute."""
    import socket

    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock
