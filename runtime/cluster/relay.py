"""Relay: an ASGI application without an engine, between clients and replicas, so that a replica may die."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from kvfold.runtime.cluster.asgi_messages import read_body, send_error, send_whole, wait_until_gone
from kvfold.runtime.cluster.passage import Choose, Passage, Replicas, headers_of
from kvfold.runtime.cluster.placement import Asked
from kvfold.runtime.server.http import HttpError, Receive, Scope, Send

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 3.0
# Who may scrape one replica may know them all. The answer is what Prometheus' discovery by HTTP takes.
TARGETS, ASKED_FIRST = "/v1/kvfold/replicas", "/metrics"


class Relay:
    """What clients' requests come to."""

    def __init__(
        self, choose: Choose, addresses: Callable[[], Awaitable[list[str]]], relay_key: str, patience: float
    ) -> None:
        """Over replicas that somebody else knows.

        Args:
            choose: finds a replica for a request.
            addresses: of all replicas.
            relay_key: what replicas know it by.
            patience: seconds to look for a replica.
        """
        self._choose = choose
        self._addresses = addresses
        self._relay_key = relay_key
        self._patience = patience
        self._client: aiohttp.ClientSession | None = None

    @property
    def _replicas(self) -> Replicas:
        import aiohttp

        if self._client is None:
            # A machine that vanished is found by the system's probes: replies may be silent for long.
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, socket_factory=_probed_socket),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
            )
        return Replicas(self._choose, self._client, self._relay_key, self._patience)

    async def close(self) -> None:
        """End its connections."""
        if self._client is not None:
            await self._client.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        try:
            content = await read_body(receive)
            if content is None:
                return
            if scope["path"] == TARGETS:
                answer = self._tell_targets(scope, send)
            else:
                answer = Passage(self._replicas, scope, content, send).run()
        except HttpError as error:
            await send_error(send, error)
            return
        answering = asyncio.create_task(answer)
        leaving = asyncio.create_task(wait_until_gone(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _tell_targets(self, scope: Scope, send: Send) -> None:
        """Where replicas are, to whom one of them would tell its metrics."""
        replicas = self._replicas
        headers = headers_of(scope, self._relay_key)
        try:
            async with replicas.choose(Asked(secrets.randbits(64), 0)) as replica:
                url = f"http://{replica.address}{ASKED_FIRST}"
                async with replicas.client.get(url, headers=headers) as response:
                    status, content = response.status, await response.read()
        except HttpError as error:
            await send_error(send, error)
            return
        if status == 200:
            content = msgspec.json.encode([{"targets": sorted(await self._addresses()), "labels": {}}])
        await send_whole(send, status, content, {})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})


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
