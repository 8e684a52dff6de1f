"""GET /v1/kvfold/events, a snapshot a second; GET /v1/kvfold/cache, the tree once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from kvfold.runtime.server.caller import Caller
from kvfold.runtime.server.http import EventStream, HttpError, Request, Response, sse
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.ui.server_view import ServerView, sees_all_tenants
from kvfold.runtime.server.ui.tree_views import TreeViews

EVENT_SECONDS = 1.0
# A stream ends after this, and who still watches asks again, with a key that still holds.
STREAM_SECONDS = 600.0
TREE_SECONDS = 5.0


class Watching:
    """The handlers, and the trees that watchers share."""

    def __init__(self) -> None:
        """Nobody watches yet."""
        self._trees = TreeViews()

    async def events(self, request: Request, state: ServerState) -> EventStream:
        """Snapshots, until the server ends."""
        return EventStream(self._events(request.caller, state))

    async def cache(self, request: Request, state: ServerState) -> Response:
        """The tree of the caller's tenant, for an admin all; raises HttpError 503 where the engine hangs."""
        tenant = _tenant(request.caller)
        try:
            async with asyncio.timeout(TREE_SECONDS):
                return Response.json(await self._trees.next(state.llm, tenant))
        except TimeoutError:
            problem = f"the engine did not come to its next step within {TREE_SECONDS:g} s"
            raise HttpError(503, f"{problem}; GET /health/ready tells more", code="hung") from None

    async def _events(self, caller: Caller, state: ServerState) -> AsyncGenerator[bytes, None]:
        view = ServerView(state, caller)
        end = time.monotonic() + STREAM_SECONDS
        sent: dict[str, Any] | None = None
        while time.monotonic() < end:
            state.look()
            values = view.values()
            tree = None
            if (llm := state.loaded_llm) is not None and llm.failure is None:
                tree = self._trees.latest(llm, _tenant(caller))
            yield sse(msgspec.json.encode(values | {"tree": None if tree is sent else tree}))
            sent = tree
            if state.draining and not state.admission.inside:
                return
            await asyncio.sleep(EVENT_SECONDS)


def _tenant(caller: Caller) -> str | None:
    """Whose tree it sees; None is everybody's."""
    return None if sees_all_tenants(caller) else caller.tenant
