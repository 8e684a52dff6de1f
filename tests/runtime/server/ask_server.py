"""Asks the application over ASGI, without sockets: for whole bodies and for events of streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from kvfold.runtime.server.app import Application
from kvfold.runtime.server.guard.admission import AdmissionLimits
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.route_table import Routes
from kvfold.runtime.server.routes.api import api_routes
from kvfold.runtime.server.routes.conversations import ConversationLimits
from kvfold.runtime.server.state import ServerState
from tests.runtime.server.scripted_llm import ScriptedLLM

MODEL = "tiny"


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """Data of the events of a stream."""
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == "", "a stream ends with an empty line"
        lines = [line for block in blocks for line in block.split("\n")]
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]

    @property
    def chunks(self) -> list[Any]:
        """The events as JSON, but for [DONE]."""
        return [json.loads(event) for event in self.events if event != "[DONE]"]


class Server:
    """The application over a scripted model."""

    def __init__(self, llm: ScriptedLLM | None = None, limits: ConversationLimits | None = None) -> None:
        self.llm = llm or ScriptedLLM()
        self.state = ServerState(MODEL, Gate(), AdmissionLimits(64, 64))
        self.state.loaded(self.llm, None)
        self.app = Application(Routes(api_routes(self.state, limits)), self.state)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """Ask by one request, with a loop of its own."""
        return asyncio.run(self.ask("POST", path, body, headers))

    async def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask and wait for all of the answer."""
        async with self.open(method, path, body, headers) as (answer, task, _):
            await task
        return answer

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[Answer, asyncio.Task[None], asyncio.Event]]:
        """An answer as it comes, the application's task, and what to set for the client to leave."""
        sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        answer, gone, asked = Answer(), asyncio.Event(), False
        raw = {"content-type": "application/json", "content-length": str(len(sent)), **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in raw.items()],
        }

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                await gone.wait()
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": sent}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += message.get("body", b"")

        task = asyncio.create_task(self.app(scope, receive, send))
        try:
            yield answer, task, gone
        finally:
            gone.set()
            await asyncio.wait([task], timeout=5)
