"""Passage: one request on its way through a relay, from replica to replica until one has answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from kvfold.runtime.cluster.asgi_messages import send_error, send_whole
from kvfold.runtime.cluster.placement import Asked
from kvfold.runtime.cluster.read_route import read_route
from kvfold.runtime.cluster.resumable_stream import UNAVAILABLE, ResumableStream
from kvfold.runtime.server.http import HttpError, Scope, Send, openai_error_event
from kvfold.runtime.server.relayed import RELAY_HEADER
from kvfold.runtime.server.streaming import body

if TYPE_CHECKING:
    import aiohttp

LOG = logging.getLogger("kvfold.relay")
BUSY, CONFLICT = 429, 409
REFUSALS = (BUSY, UNAVAILABLE)
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


@dataclass(frozen=True)
class Replicas:
    """How a relay reaches replicas.

    Attributes:
        choose: finds one for a request.
        client: asks it.
        relay_key: what it knows the relay by.
        patience: seconds to look for one.
    """

    choose: Choose
    client: aiohttp.ClientSession
    relay_key: str
    patience: float


def headers_of(scope: Scope, relay_key: str) -> dict[str, str]:
    """A client's headers as a replica gets them."""
    pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
    kept = {name: value for name, value in pairs if name not in _OF_A_CONNECTION}
    return {"x-request-id": uuid4().hex, **kept, RELAY_HEADER: relay_key}


class Passage:
    """One request on its way through a relay."""

    def __init__(self, replicas: Replicas, scope: Scope, content: bytes, send: Send) -> None:
        """Nothing was sent yet.

        Raises:
            HttpError: 400 the target is no path, or as `read_route`.
        """
        if not scope["raw_path"].startswith(b"/"):
            raise HttpError(400, "the target is no path; send one")
        self._replicas = replicas
        self._scope = scope
        self._send = send
        self._headers = headers_of(scope, replicas.relay_key)
        self._read = read_route(scope["method"], scope["path"], self._headers, content)
        self._stream = None if self._read.relayed is None else ResumableStream(self._read.relayed)
        self._head_sent = self._lost = False
        self._refusal: HttpError | None = None
        self._tried: list[str] = []

    async def run(self) -> None:
        """From replica to replica, until one has answered all of it."""
        end = time.monotonic() + self._replicas.patience
        try:
            while not await self._try_one(end):
                pass
        except HttpError as error:
            await self._give_up(error)

    async def _try_one(self, end: float) -> bool:
        """Whether a replica answered to the end; raises HttpError where there is none for it."""
        asked = Asked(self._read.key, self._read.tokens, tuple(self._tried))
        try:
            async with (
                asyncio.timeout_at(_loop_time(end)) as waiting,
                self._replicas.choose(asked) as replica,
            ):
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
            self._lost = True
            return False

    async def _exchange(self, replica: Chosen) -> bool:
        import yarl

        stream = self._stream
        if stream is not None:
            stream.start_over()
        content = self._read.body_for(None if stream is None else stream.relayed)
        path, query = (self._scope[name].decode("latin-1") for name in ("raw_path", "query_string"))
        # As it came: what another way of writing it would be was not read here.
        url = yarl.URL.build(
            scheme="http", authority=replica.address, path=path, query_string=query, encoded=True
        )
        async with self._replicas.client.request(
            self._scope["method"], url, headers=self._headers, data=content or None, allow_redirects=False
        ) as response:
            if response.status == CONFLICT and self._lost and stream is not None:
                await response.read()  # what was lost there has not quite ended yet
            elif response.status in REFUSALS:
                self._refusal = HttpError(
                    response.status,
                    (await response.read()).decode(errors="replace"),
                    headers={"retry-after": response.headers.get("retry-after", str(RETRY_SECONDS))},
                )
            elif response.content_type == "text/event-stream":
                if await self._pass_stream(response):
                    return True
                self._lost = True
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
            await send_whole(self._send, error.status, error.message.encode(), error.headers)
        else:
            await send_error(self._send, error)


def _nobody() -> HttpError:
    return HttpError(
        UNAVAILABLE,
        "no replica could be reached; try again",
        code="no_replica",
        headers={"retry-after": str(RETRY_SECONDS)},
    )


def _loop_time(monotonic: float) -> float:
    return asyncio.get_running_loop().time() + monotonic - time.monotonic()
