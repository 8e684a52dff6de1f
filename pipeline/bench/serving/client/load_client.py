"""LoadClient: sends requests over aiohttp and notes when each piece of a reply came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from kvfold.pipeline.bench.serving.client.asks import Ask
from kvfold.pipeline.bench.serving.client.outcome import Ending, Outcome
from kvfold.plugins.contract.errors import TargetError

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

KEEP_ALIVE = 3.0  # seconds; less than servers grant, or a request may meet a connection that just closed
MODELS = "/v1/models"
SHOWN = 200  # characters of a body that nobody foresaw


class LoadClient:
    """Sends requests to one server; `open_client` makes it.

    Attributes:
        model: the name that requests go by; `find_model` asks for it.
    """

    def __init__(self, url: str, session: ClientSession) -> None:
        self.model = ""
        self._url = url
        self._session = session

    async def find_model(self) -> None:
        """Take the first model that the server lists.

        Raises:
            TargetError: it lists none.
        """
        status, text = await self.get(MODELS)
        try:
            self.model = json.loads(text)["data"][0]["id"]
        except (ValueError, LookupError, TypeError) as error:
            raise TargetError(
                f"{self._url}{MODELS} answers {status} and names no model; is it a server of OpenAI's API?"
            ) from error

    async def send(self, ask: Ask, due: float) -> Outcome:
        """Send one request and read its reply to the end; whatever goes wrong is told by the outcome."""
        from aiohttp import ClientError

        reply = _Reply(due)
        patience = asyncio.timeout(ask.hang_up)
        try:
            async with patience:
                await self._read(ask, reply)
        except (ClientError, OSError) as error:  # TimeoutError is one
            if patience.expired():
                return reply.end("aborted")
            return reply.end("broken", f"{type(error).__name__}: {error}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return reply.end("broken", f"not OpenAI's API: {type(error).__name__}: {error}")
        if reply.left:
            return reply.end("aborted")
        if reply.status != 200:
            return reply.end("refused", reply.trouble)
        missing = reply.missing()
        return reply.end("broken", missing) if missing else reply.end("complete")

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body; (0, "") where nobody answers."""
        from aiohttp import ClientError

        try:
            async with self._session.get(self._url + path) as response:
                return response.status, await response.text()
        except (ClientError, OSError):
            return 0, ""

    async def _read(self, ask: Ask, reply: _Reply) -> None:
        body = ask.body
        data = body if isinstance(body, bytes) else json.dumps({"model": self.model, **body}).encode()
        headers = {"Content-Type": "application/json", **ask.headers}
        async with self._session.post(self._url + ask.path, data=data, headers=headers) as response:
            reply.status = response.status
            try:
                if response.status != 200:
                    reply.retry_after = _seconds(response.headers.get("Retry-After"))
                    reply.trouble = _refusal(await response.text())
                elif ask.streams:
                    reply.streamed = True
                    await _read_events(response, reply, ask.pieces)
                    if reply.left:
                        response.close()
                else:
                    reply.take_whole(json.loads(await response.read()))
            except asyncio.CancelledError:
                response.close()  # the server is to see it at once
                raise


@asynccontextmanager
async def open_client(url: str, keep_alive: bool = True) -> AsyncIterator[LoadClient]:
    """A client of a server such as `http://127.0.0.1:8000`, with as many connections as are asked for.

    Without `keep_alive` every request has a connection of its own.
    """
    from aiohttp import ClientSession, ClientTimeout, TCPConnector

    timeout = KEEP_ALIVE if keep_alive else None
    connector = TCPConnector(limit=0, keepalive_timeout=timeout, force_close=not keep_alive)
    async with ClientSession(connector=connector, timeout=ClientTimeout(total=None)) as session:
        yield LoadClient(url.rstrip("/"), session)


@dataclass
class _Reply:
    """A reply in the making."""

    due: float
    status: int = 0
    trouble: str = ""
    retry_after: float | None = None
    streamed: bool = False
    left: bool = False
    done: bool = False
    arrivals: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    def take_event(self, event: dict[str, Any], clock: float) -> None:
        """An event of a stream."""
        if event.get("error"):
            self.trouble = f"error in the stream: {_said(event['error'])}"
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            text = choice.get("text") or choice.get("delta", {}).get("content")
            if text:
                self.texts.append(text)
                self.arrivals.append(clock)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def take_whole(self, body: dict[str, Any]) -> None:
        """A reply that was not streamed."""
        choice = body["choices"][0]
        self.texts.append(choice["text"] if "text" in choice else choice["message"]["content"] or "")
        self.arrivals.append(perf_counter())
        self.finish_reason = choice.get("finish_reason")
        self.usage = body.get("usage") or {}

    def missing(self) -> str:
        """What a reply lacks that the server calls whole; empty for nothing."""
        if self.trouble:
            return self.trouble
        if self.finish_reason is None:
            return "no finish_reason"
        return "no [DONE]" if self.streamed and not self.done else ""

    def end(self, ending: Ending, trouble: str = "") -> Outcome:
        """The outcome, now."""
        details = self.usage.get("prompt_tokens_details") or {}
        outcome = Outcome(self.due, perf_counter(), ending, self.status, trouble, self.retry_after)
        return replace(
            outcome,
            arrivals=tuple(self.arrivals),
            text="".join(self.texts),
            finish_reason=self.finish_reason,
            prompt_tokens=int(self.usage.get("prompt_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
            completion_tokens=int(self.usage.get("completion_tokens") or 0),
        )


async def _read_events(response: ClientResponse, reply: _Reply, pieces: int | None) -> None:
    """Take in server-sent events, at most those of so many pieces of text.

    One `data:` line is an event; comments and other fields are passed over.
    """
    rest = b""
    async for piece in response.content.iter_any():
        clock = perf_counter()
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                reply.done = True
            else:
                reply.take_event(json.loads(data), clock)
        if pieces is not None and len(reply.arrivals) >= pieces:
            reply.left = True
            return


def _seconds(header: str | None) -> float | None:
    """Of a Retry-After, which may be a date too: that is none."""
    return float(header) if header is not None and header.isdigit() else None


def _refusal(body: str) -> str:
    try:
        return _said(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:SHOWN]


def _said(error: object) -> str:
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:SHOWN]
