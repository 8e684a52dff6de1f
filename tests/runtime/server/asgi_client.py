"""An ASGI client in the process: one call, one request; what is sent can be read while it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvfold.runtime.server.http import Message, Receive, Scope, Send

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
JSON = {"content-type": "application/json"}


@dataclass
class Answer:
    """What the application sent so far."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.json()["error"]
        return found


class Exchange:
    """A request that runs as a task of its own."""

    def __init__(
        self,
        app: Asgi,
        method: str,
        path: str,
        body: bytes | Sequence[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        scope: Mapping[str, Any] | None = None,
    ) -> None:
        """`body` in several parts comes as several messages; an open one never ends."""
        self.answer = Answer()
        self.reads = asyncio.Event()  # cleared: the client takes nothing
        self.reads.set()
        self._left = asyncio.Event()
        self._parts = [body] if isinstance(body, bytes) else list(body)
        path, _, query = path.partition("?")
        self._scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
            **(scope or {}),
        }
        self.task = asyncio.ensure_future(app(self._scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            assert not self.answer.status
            self.answer.status = message["status"]
            self.answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        assert self.answer.status and not self.answer.complete
        self.answer.parts.append(message["body"])
        self.answer.complete = not message["more_body"]

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()

    async def end(self) -> Answer:
        """Wait for the end of the request."""
        await self.task
        return self.answer


async def ask(
    app: Asgi,
    method: str,
    path: str,
    value: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """A request with a JSON value, or bytes, and its answer."""
    body = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
    return await Exchange(app, method, path, body, {**JSON, **(headers or {})}).end()


async def until(condition: Any) -> None:
    """Wait for something that other tasks do."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)
