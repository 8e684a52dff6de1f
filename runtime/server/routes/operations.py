"""What runs, and what is kept: requests and sessions under /v1/kvfold/."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from kvfold.runtime.server.http import HttpError, Request, Response
from kvfold.runtime.server.routes.conversations import Session
from kvfold.runtime.server.routes.shared import Shared
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.wire.fields.read_body import ignored_header, read_body
from kvfold.runtime.server.wire.fields.sampling_fields import check_session
from kvfold.runtime.server.wire.reply_parts import new_id


class SessionBody(msgspec.Struct, frozen=True):
    """Fields of POST /v1/kvfold/sessions; the body may be empty."""

    session_id: str | None = None


class Operations:
    """The handlers, and what they share with others. An admin sees all tenants, others their own."""

    def __init__(self, shared: Shared) -> None:
        """Over what handlers share."""
        self._shared = shared

    async def list_requests(self, request: Request, state: ServerState) -> Response:
        """Requests that run or wait, the oldest first."""
        now = time.monotonic()
        found = [
            {
                "id": str(view.id),
                "tenant": view.tenant,
                "state": view.state,
                "prompt_tokens": view.prompt_tokens,
                "reused_tokens": view.reused_tokens,
                "completion_tokens": view.completion_tokens,
                "age_seconds": round(now - view.submitted, 3),
            }
            for view in sorted(state.llm.snapshot().requests, key=lambda view: view.submitted)
            if _may_see(request, view.tenant)
        ]
        return Response.json({"object": "list", "data": found})

    async def cancel_request(self, request: Request, state: ServerState) -> Response:
        """End one within a step; raises HttpError 404 where there is none."""
        name = request.path_params["id"]
        running = self._shared.running.get(name)
        if running is None or not _may_see(request, running.tenant):
            raise HttpError(
                404, f"no request {name!r:.80} runs; GET /v1/kvfold/requests lists them", param="id"
            )
        running.stop()
        return Response.json({"id": name, "object": "kvfold.request", "cancelled": True})

    async def create_session(self, request: Request, state: ServerState) -> Response:
        """A session without a turn."""
        fields: dict[str, Any] = await request.json(dict[str, Any]) if await request.body() else {}
        body, ignored = read_body(fields, SessionBody)
        name = check_session(body.session_id) or new_id("sess_")
        made = await self._shared.create_session(request, name)
        return Response.json(made.view(), 201, ignored_header(ignored))

    async def list_sessions(self, request: Request, state: ServerState) -> Response:
        """Sessions."""
        found = await self._shared.sessions.all(lambda tenant: _may_see(request, tenant))
        views = [one.view() | {"tenant": tenant} for tenant, one in found]
        return Response.json({"object": "list", "data": views})

    async def get_session(self, request: Request, state: ServerState) -> Response:
        """One session; raises HttpError 404 where there is none."""
        return Response.json((await self._find(request)).view())

    async def delete_session(self, request: Request, state: ServerState) -> Response:
        """Forget one and give its pages back; raises HttpError 404, or 409 while its turn runs."""
        found = await self._find(request)
        found.check_free()
        await self._shared.sessions.drop(request.tenant, found)
        return Response.json({"id": found.id, "object": "kvfold.session", "deleted": True})

    async def _find(self, request: Request) -> Session:
        name = request.path_params["id"]
        found = await self._shared.sessions.find(request.tenant, name)
        if found is None:
            raise HttpError(
                404, f"there is no session {name!r:.80}; GET /v1/kvfold/sessions lists them", param="id"
            )
        return found


def _may_see(request: Request, tenant: str) -> bool:
    return tenant == request.tenant or "admin" in request.caller.roles
