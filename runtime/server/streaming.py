"""Streams of events on their way out: comments while they are silent, an end for readers that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from kvfold.runtime.server.http import EventStream, HttpError, Message, Request, Send

KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold events back
}


@dataclass(frozen=True)
class StreamLimits:
    """When a stream gets a comment, and when it is cut.

    Attributes:
        keep_alive_seconds: silence after which a comment is sent; proxies cut silent streams at 60 s.
        max_unread_characters: of text that waits for the client; beyond it the stream is cut.
        look_seconds: between two looks at all streams.
    """

    keep_alive_seconds: float = 15.0
    max_unread_characters: int = 2**20
    look_seconds: float = 1.0


@dataclass(eq=False)
class OpenStream:
    """A stream that is being sent.

    Attributes:
        sent: events so far.
        seen: events at the last look.
        quiet_since: the loop's time of the last look that saw a new one.
        sending: an event is on its way.
        comment: the last one.
    """

    request: Request
    send: Send
    task: asyncio.Task[object]
    quiet_since: float
    sent: int = 0
    seen: int = 0
    sending: bool = False
    comment: asyncio.Task[None] | None = None

    @property
    def blocked(self) -> bool:
        """Whether the client has not taken what is on its way."""
        return self.sending or (self.comment is not None and not self.comment.done())


class StreamSweep:
    """Looks at all open streams at once: no stream has a timer of its own."""

    def __init__(self, limits: StreamLimits | None = None) -> None:
        """Looks begin with the first stream."""
        self._limits = limits or StreamLimits()
        self._open: set[OpenStream] = set()
        self._looking = False

    def add(self, stream: OpenStream) -> None:
        """From now on, look at this one too."""
        self._open.add(stream)
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(self._limits.look_seconds, self._look_again)

    def remove(self, stream: OpenStream) -> None:
        """It has ended."""
        self._open.discard(stream)

    def unread(self) -> int:
        """Characters of text that clients of open streams did not take yet."""
        return sum(_unread(stream) for stream in self._open)

    def look(self, now: float) -> None:
        """Send comments and cut streams, at this time of the loop."""
        for stream in self._open:
            self._look_at(stream, now)

    def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        self.look(loop.time())
        self._looking = bool(self._open)
        if self._looking:
            loop.call_later(self._limits.look_seconds, self._look_again)

    def _look_at(self, stream: OpenStream, now: float) -> None:
        if _unread(stream) > self._limits.max_unread_characters and not stream.request.cut:
            stream.request.cut = True
            stream.task.cancel()
        elif stream.sent != stream.seen:
            stream.seen, stream.quiet_since = stream.sent, now
        elif now - stream.quiet_since >= self._limits.keep_alive_seconds and not stream.blocked:
            stream.quiet_since = now
            stream.comment = asyncio.create_task(self._comment(stream))

    async def _comment(self, stream: OpenStream) -> None:
        if stream in self._open:  # it may have ended since
            await stream.send(body(KEEP_ALIVE))


def _unread(stream: OpenStream) -> int:
    return sum(reply.unread_characters for reply in stream.request.replies)


def body(content: bytes, more: bool = True) -> Message:
    """ASGI's message for a part of a body."""
    return {"type": "http.response.body", "body": content, "more_body": more}


async def send_events(
    stream: EventStream,
    request: Request,
    send: Send,
    sweep: StreamSweep,
    failed: Callable[[Exception], HttpError],
) -> None:
    """Send a stream to its end; the head has gone out before.

    Args:
        stream: what to send.
        request: what it answers.
        send: ASGI's.
        sweep: who looks after it.
        failed: told of an exception that `stream.events` raised; what it is to the client.

    Raises:
        asyncio.CancelledError: the client left, or did not read; `events` is closed by then.
    """
    task = asyncio.current_task()
    assert task is not None
    request.watch()
    sent = OpenStream(request, send, task, asyncio.get_running_loop().time())
    sweep.add(sent)
    try:
        try:
            async for event in stream.events:
                sent.sending = True
                await send(body(event))
                sent.sending = False
                sent.sent += 1
        finally:
            await stream.events.aclose()
    except Exception as error:
        await send(body(stream.error_event(failed(error))))
    finally:
        sweep.remove(sent)
    await send(body(b"", more=False))
