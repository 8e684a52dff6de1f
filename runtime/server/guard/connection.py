"""Connections: uvicorn's protocol, bounded in number, in bytes of a message, and in time without progress."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from kvfold.runtime.server.guard.plain_parser import PlainParser
from kvfold.runtime.server.http import MAX_BODY_BYTES, HttpError, openai_error


class QuietTransport:
    """A transport that may be used after its end, which a task hears of only when its turn comes.

    That is so with asyncio's own; uvloop's raises.
    """

    def __init__(self, transport: asyncio.Transport, more_comes: Callable[[], bool]) -> None:
        """Over the connection's; `more_comes` says whether its client still sends what nobody reads."""
        self._transport = transport
        self._more_comes = more_comes

    def write(self, data: bytes) -> None:
        """Send, if it has not ended."""
        if self._transport.is_closing():
            return
        try:
            self._transport.write(data)
        except RuntimeError:  # the client ended it a moment ago, which is_closing does not know yet
            self._transport.abort()

    def close(self) -> None:
        """End it; with bytes unread, its client might not see the answer: then no more is sent."""
        if not self._more_comes():
            self._transport.close()
        elif self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def resume_reading(self) -> None:
        """Read on, if it has not ended."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the connection's."""
        return getattr(self._transport, name)


class GuardedProtocol(HttpToolsProtocol):
    """One connection; uvicorn makes it, from `Config(http=GuardedProtocol)`.

    A scope gets `kvfold.arrived`, time.monotonic() of its first byte, and `kvfold.abort`, which ends the
    connection without waiting for the client to read.

    Attributes:
        max_connections: more are told 503 and closed.
        max_head_bytes: of a request's headers, trailers too; more are told 431.
        max_message_bytes: of all of a request as it is sent.
        max_pipelined: requests behind one that is not answered, before nothing more is read.
        head_seconds: from a connection, or a request's first byte, to the end of its head.
        discard_seconds: for the rest of a request after its answer; most clients read an answer only when
            they have sent all.
        write_seconds: for a client to take some of what waits for it.
    """

    max_connections = 1024
    max_head_bytes = 16 * 1024
    max_message_bytes = 2 * MAX_BODY_BYTES
    max_pipelined = 16
    head_seconds = 10.0
    discard_seconds = 2.0
    write_seconds = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own
        """Count it, or refuse it."""
        self._progress: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._refusal: HttpError | None = None
        self._in_head = True
        self._began = self._deaf = False
        self._head_bytes = self._half_head = self._received = 0
        self._unanswered: deque[RequestResponseCycle] = deque()
        self.parser = PlainParser(self)  # type: ignore[assignment] # uvicorn's own
        quiet = QuietTransport(transport, lambda: self._more_comes)
        super().connection_made(quiet)  # type: ignore[arg-type] # all that uvicorn uses
        if len(self.connections) > self.max_connections:
            limit = f"there are {self.max_connections} connections already; close some"
            self._refuse(HttpError(503, limit, headers={"retry-after": "1"}))
        else:
            self._expect_progress(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is timed any more."""
        self._expect_progress(None)
        self.resume_writing()
        self._hang_up()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and count what no callback tells of: half a header, the frames of chunks."""
        if self._deaf or self._refusal is not None:
            return
        self._began = False
        super().data_received(data)
        if self._refusal is not None:
            return
        # What waits behind a request that is not answered counts with it.
        fresh = self._began and len(self._unanswered) < 2
        self._received = len(data) if fresh else self._received + len(data)
        if self._in_head and not self._began:
            self._half_head += len(data)
        if self._half_head > self.max_head_bytes:
            self._refuse(self._long_head())
        elif self._received > self.max_message_bytes:
            self._refuse(
                HttpError(413, f"the request is longer than {self.max_message_bytes} bytes; send less")
            )

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._in_head = self._began = True
        self._head_bytes = self._half_head = 0
        self._expect_progress(self.head_seconds)
        self.scope["kvfold.arrived"] = time.monotonic()  # type: ignore[typeddict-unknown-key] # ours
        self.scope["kvfold.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key] # ours

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or trailer."""
        self._count_head(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request goes to the application."""
        self._in_head = False
        self._expect_progress(None)
        super().on_headers_complete()
        self._unanswered.append(self.cycle)
        if any(name == b"content-length" and int(value) > MAX_BODY_BYTES for name, value in self.headers):
            self.cycle.keep_alive = False  # whatever the answer, nobody reads so much
        held = sum(len(cycle.body) for cycle in self._unanswered)
        if len(self._unanswered) <= self.max_pipelined and held <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()  # behind another request too: else nobody sees that the client left

    def on_message_complete(self) -> None:
        """All of a request is here; where its answer went out before, the connection is idle now."""
        if self.parser.should_upgrade():
            return  # the parser reads on
        super().on_message_complete()
        if self.cycle.response_complete:
            self._expect_progress(None)
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """An answer went out; the rest of its request may still come."""
        cycle = self._unanswered.popleft()
        if cycle.more_body and not cycle.keep_alive:
            self._deaf = True
            self._hang_up()
            self._discard()
            return
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_progress(self.write_seconds)
        elif self.cycle.response_complete and self.cycle.more_body:
            self._expect_progress(self.discard_seconds)

    def pause_writing(self) -> None:
        """The client does not keep up."""
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client took some."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for long; what the client did not read by now is dropped."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that are no HTTP, and for an exception in a callback of the parser."""
        if self._refusal is None:
            self._refusal = HttpError(400, "this is no HTTP request")
        if self._unanswered and self._unanswered[0].response_started:
            self.transport.abort()  # in the middle of an answer there is no place for another
            return
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            # This one has its answer: another would be taken for the next one's. What still comes is dropped
            # until the time for it is over, so that its client reads the answer it has.
            return
        self._hang_up()
        error = self._refusal
        body = msgspec.json.encode(openai_error(error))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **error.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(b"".join((STATUS_LINE[error.status], lines.encode(), b"\r\n", body)))
        self.transport.close()
        self._discard()

    @property
    def _more_comes(self) -> bool:
        """Whether the client may still send what nobody reads, when the connection is to end."""
        if self._refusal is not None:
            return self._refusal.status != 503
        first = self._unanswered[0] if self._unanswered else None
        return first is not None and first.response_complete and first.more_body

    def _discard(self) -> None:
        """Give the client time to read the last answer."""
        if self.transport.is_closing():
            self._expect_progress(self.write_seconds)
        else:
            self.flow.resume_reading()
            self._expect_progress(self.discard_seconds)

    def _hang_up(self) -> None:
        """Nobody reads answers any more: not that to the last request, nor to those before it."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def _refuse(self, error: HttpError) -> None:
        self._refusal = error
        self.send_400_response("")

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.max_head_bytes:
            self._refusal = self._long_head()
            raise self._refusal  # the parser stops, and uvicorn calls send_400_response

    def _long_head(self) -> HttpError:
        return HttpError(431, f"the headers are longer than {self.max_head_bytes} bytes; send less")

    def _expect_progress(self, seconds: float | None) -> None:
        if self._progress is not None:
            self._progress.cancel()
            self._progress = None
        if seconds is not None:
            self._progress = self.loop.call_later(seconds, self.transport.abort)
