"""The application over a scripted model, asked without sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from kvfold.runtime.server.app import Application
from kvfold.runtime.server.caller import Caller
from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.http import Request
from kvfold.runtime.server.route_table import Routes
from kvfold.runtime.server.routes.api import api_routes
from kvfold.runtime.server.routes.conversations import ConversationLimits
from kvfold.runtime.server.state import ServerState
from tests.runtime.server.asgi_client import JSON, Answer, Exchange, ask
from tests.runtime.server.routes.scripted_llm import ScriptedLLM

MODEL = "tiny"


class NamedTenants(Gate):
    """Believes the header x-tenant; who is called `boss` is an admin."""

    def enter(self, request: Request, access: Any) -> None:
        name = request.headers.get("x-tenant", "")
        request.caller = Caller(
            name, name, frozenset({"admin", "inference"} if name == "boss" else {"inference"})
        )


class Server:
    """The application, and the model it asks."""

    def __init__(
        self,
        llm: ScriptedLLM | None = None,
        limits: ConversationLimits | None = None,
        compiler: Any = None,
    ) -> None:
        self.llm = llm or ScriptedLLM()
        self.state = ServerState(MODEL, NamedTenants(), AdmissionLimits(64, 64))
        self.state.loaded(self.llm, compiler)
        self.app = Application(Routes(api_routes(self.state, limits)), self.state)

    def post(self, path: str, value: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """Ask in a loop of its own."""
        return asyncio.run(self.ask("POST", path, value, headers))

    async def ask(
        self, method: str, path: str, value: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask, and wait for the end."""
        return await ask(self.app, method, path, value, headers)

    def open(self, path: str, value: Any, headers: Mapping[str, str] | None = None) -> Exchange:
        """Ask, and look while the answer comes."""
        return Exchange(self.app, "POST", path, json.dumps(value).encode(), {**JSON, **(headers or {})})


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    """A chat completion's body: what the user, the model, the user ... said."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts or ("Hi",))]
    return {"model": MODEL, "messages": messages, **more}


def events(answer: Answer) -> list[tuple[str | None, str]]:
    """Names and data of a stream's events."""
    *blocks, rest = answer.body.decode().split("\n\n")
    assert rest == "", "a stream ends with a whole event"
    found = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields.get("event"), fields["data"]))
    return found


def chunks(answer: Answer) -> list[dict[str, Any]]:
    """The events' data, which ends with [DONE]."""
    *data, (_, last) = events(answer)
    assert last == "[DONE]"
    return [json.loads(text) for _, text in data]
