"""HTTP in and out, over ASGI: a request read within limits, a response, a stream of events, an error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec

from kvfold.plugins.contract.errors import CapacityError, KvfoldError, RequestError

if TYPE_CHECKING:
    from kvfold.runtime.server.caller import Caller
    from kvfold.runtime.server.relayed import Relayed
    from kvfold.runtime.server.served_llm import PendingReply

T = TypeVar("T")
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = "application/json"
# JSON is read under Python's lock, so long bodies keep the loop waiting: docs/serving.md says how long.
MAX_BODY_BYTES = 2 * 2**20
BODY_SECONDS = 30.0
CLOSE = {"connection": "close"}  # what still comes of the body is dropped
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class HttpError(Exception):
    """What ends a request with a status above 399.

    Attributes:
        status: of the response.
        message: what is wrong, which value, what to do next.
        type: OpenAI's kind of error, such as `invalid_request_error`; by default the status's own.
        param: the field of the request that is wrong.
        code: a word that programs compare, such as `model_not_found`.
        headers: of the response, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,  # noqa: A002 - the name of the field in the API
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """An error to raise in a handler, or in its stream."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or _ERROR_TYPES.get(
            status, "server_error" if status >= 500 else "invalid_request_error"
        )
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def to_http_error(error: Exception) -> HttpError:
    """What an exception is to a client; of a bug of ours it is told no more than that."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, (RequestError, CapacityError)):
        return HttpError(400, str(error))
    if isinstance(error, KvfoldError):  # the engine's
        return HttpError(503, str(error), code="engine_error")
    return HttpError(500, "an error inside the server; its log has it under this answer's x-request-id")


def openai_error(error: HttpError) -> dict[str, Any]:
    """OpenAI's body of an error."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def openai_error_event(error: HttpError) -> bytes:
    """The same inside a stream."""
    return sse(msgspec.json.encode(openai_error(error)))


def sse(data: bytes, event: str | None = None) -> bytes:
    """One event of a stream; `data` has no newline."""
    if event is None:
        return b"data: " + data + b"\n\n"
    return b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"


@dataclass(frozen=True)
class Response:
    """A whole answer.

    Attributes:
        body: its bytes.
        status: its status.
        media_type: of the body.
        headers: beyond Content-Type and Content-Length.
    """

    body: bytes = b""
    status: int = 200
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """A value that msgspec encodes."""
        return cls(msgspec.json.encode(value), status, JSON, headers or {})

    @classmethod
    def text(cls, text: str, status: int = 200, media_type: str = "text/plain; charset=utf-8") -> Response:
        """A text."""
        return cls(text.encode(), status, media_type)


@dataclass(frozen=True)
class EventStream:
    """An answer by server-sent events; the application sends it, with comments while it is silent.

    Attributes:
        events: whole events (`sse`), one or several joined. It is closed when the client leaves.
        error_event: the event of an exception that `events` raises; the stream ends after it.
        headers: beyond those of every stream.
    """

    events: AsyncGenerator[bytes, None]
    error_event: Callable[[HttpError], bytes] = openai_error_event
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class Request:
    """One request.

    Attributes:
        method: such as `POST`; HEAD is GET to a handler.
        path: decoded.
        headers: by lower-case name; of repeated ones the last.
        id: the client's `x-request-id` or one of ours; logged and sent back.
        arrived: time.monotonic() of its first byte.
        path_params: parts of the path that the route names.
        caller: whose key it came with.
        hold_body: counts its body's bytes: BodyBudget.resize.
        replies: what was submitted for it. They are cancelled when the request ends, however it ends.
        disconnected: the client left.
        cut: the client did not read, and was left.
        from_relay: it came through our own relay, which is trusted.
        relayed: what that said of it.
    """

    scope: Scope
    receive: Receive
    id: str
    caller: Caller
    hold_body: Callable[[int, int], int]
    path_params: Mapping[str, str] = field(default_factory=dict)
    replies: list[PendingReply] = field(default_factory=list)
    disconnected: bool = False
    cut: bool = False
    from_relay: bool = False
    relayed: Relayed | None = None
    _endings: list[Callable[[], None]] = field(default_factory=list)
    _body: bytes | None = None
    _held: int = 0
    _watch: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        """Take what is used of the scope."""
        self.method: str = "GET" if self.scope["method"] == "HEAD" else self.scope["method"]
        self.path: str = self.scope["path"]
        self.headers: Mapping[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in self.scope["headers"]
        }
        self.arrived: float = self.scope.get("kvfold.arrived") or time.monotonic()

    @cached_property
    def query(self) -> Mapping[str, str]:
        """Parameters after the `?`."""
        return dict(parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True))

    @property
    def tenant(self) -> str:
        """Whose prefixes it may reuse; empty without keys."""
        return self.caller.tenant

    async def body(self) -> bytes:
        """All of the body; raises HttpError: 413 it is too long, 408 too slow, 429 there is no room."""
        if self._body is None:
            self._body = await self._read_body()
            self.watch()
        return self._body

    async def json(self, kind: type[T]) -> T:
        """The body as a value of a type that msgspec knows.

        Raises:
            HttpError: 415 it is not said to be JSON; 400 it is no JSON, or not of this type: `param` says
                where.
        """
        self.check_json()
        return decode_json(await self.body(), kind)

    def check_json(self) -> None:
        """Refuse a body that is not said to be JSON; raises HttpError 415."""
        given = self.headers.get("content-type", "")
        # Without this a page of any site could post to a server on the reader's own machine: a browser asks
        # before it sends JSON, and the answer is no.
        if given.partition(";")[0].strip().lower() != JSON:
            raise HttpError(415, f"the content-type is {given!r:.100}; send {JSON}")

    def watch(self) -> None:
        """From here on, a client that leaves cancels the task that called this."""
        if self._watch is None:
            handler = asyncio.current_task()
            assert handler is not None
            self._watch = asyncio.create_task(self._cancel_when_gone(handler))

    def end(self) -> None:
        """Nothing is watched any more, and nothing runs on for this request."""
        if self._watch is not None:
            self._watch.cancel()
        for reply in self.replies:
            reply.cancel()
        for ending in self._endings:
            ending()
        self._held = self.hold_body(self._held, 0)

    def at_end(self, ending: Callable[[], None]) -> None:
        """Call this when the request ends, however it ends."""
        self._endings.append(ending)

    async def _cancel_when_gone(self, handler: asyncio.Task[Any]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True
        handler.cancel()

    async def _read_body(self) -> bytes:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._collect()
        except TimeoutError:
            raise HttpError(408, f"the body took longer than {BODY_SECONDS:g} s", headers=CLOSE) from None

    async def _collect(self) -> bytes:
        if not self.headers.get("content-length", "0").isdecimal():
            raise HttpError(400, "the content-length is no number")
        size = int(self.headers.get("content-length", "0"))
        parts: list[bytes] = []
        received, more = 0, True
        while size <= MAX_BODY_BYTES:
            self._held = self.hold_body(self._held, size)
            if not more:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.disconnected = True
                raise asyncio.CancelledError
            parts.append(message.get("body", b""))
            received += len(parts[-1])
            size = max(size, received)
            more = message.get("more_body", False)
        raise HttpError(413, f"the body is longer than {MAX_BODY_BYTES} bytes; send less", headers=CLOSE)


def decode_json(body: bytes, kind: type[T]) -> T:
    """JSON as a value of a type that msgspec knows; raises HttpError 400."""
    try:
        return cast(T, _decoder(cast(Hashable, kind)).decode(body))
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        param = place.strip("`").removeprefix(".") or None
        raise HttpError(400, f"{param or 'the body'}: {problem}", param=param) from None
    except RecursionError:
        raise HttpError(400, "the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(400, f"the body is no JSON: {error}") from None


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)
