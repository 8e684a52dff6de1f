"""The ASGI application: finds a request's route, lets in who may, sends what the handler answers."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from uuid import uuid4

from kvfold.runtime.server.caller import NOBODY
from kvfold.runtime.server.http import (
    HttpError,
    Message,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    openai_error,
    to_http_error,
)
from kvfold.runtime.server.relayed import Note
from kvfold.runtime.server.route_table import Route, Routes
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.streaming import HEADERS, body, send_events

LOG = logging.getLogger("kvfold.server")
CLIENT_CLOSED = 499  # nginx's: nobody reads it but the log
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_NOT_IN_A_HEADER = re.compile(r"[^\x20-\x7e]")


class Application:
    """What uvicorn calls."""

    def __init__(self, routes: Routes, state: ServerState) -> None:
        """Over a table of routes."""
        self._routes = routes
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise ValueError(f"kvfold serves HTTP, and this is {scope['type']}")
        request = Request(scope, receive, _request_id(scope), NOBODY, self._state.bodies.resize)
        status = CLIENT_CLOSED
        try:
            status = await self._answer(request, send)
        except asyncio.CancelledError:
            if not (request.disconnected or request.cut):
                raise
            if request.cut and (abort := scope.get("kvfold.abort")) is not None:
                abort()
                await asyncio.sleep(0)  # uvicorn hears of it
        finally:
            request.end()
            self._state.gate.leave(request)
            _log(request, status)

    async def _answer(self, request: Request, send: Send) -> int:
        """The status that was sent."""
        error_body: Callable[[HttpError], dict[str, Any]] = openai_error
        try:
            route = self._find(request)
            error_body = route.error_body
            self._state.gate.enter(request, route.access)
            answer = await route.handler(request, self._state)
        except Exception as error:
            problem = _explain(request, error)
            answer = Response.json(error_body(problem), problem.status, problem.headers)
        if isinstance(answer, Response):
            await send(_head(answer.status, _headers_of(answer), request))
            await send(body(b"" if request.scope["method"] == "HEAD" else answer.body, more=False))
            return answer.status
        await send(_head(200, {**HEADERS, **answer.headers}, request))
        if request.scope["method"] == "HEAD":
            await answer.events.aclose()
            await send(body(b"", more=False))
        else:
            if request.relayed is not None:
                answer = replace(answer, error_event=_noted(answer.error_event))
            await send_events(
                answer, request, send, self._state.sweep, lambda error: _explain(request, error)
            )
        return 200

    def _find(self, request: Request) -> Route:
        try:
            route, request.path_params = self._routes.find(request.method, request.scope["raw_path"])
        except HttpError:
            self._state.gate.enter(request, "any key")  # strangers are not told which paths there are
            raise
        return route


def _request_id(scope: Scope) -> str:
    """The client's own where it can stand in a header and a log."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value, "latin-1")
    return uuid4().hex


def _explain(request: Request, error: Exception) -> HttpError:
    """What an exception is to the client; a bug of ours goes to the log."""
    problem = to_http_error(error)
    if problem.status == 500 and problem is not error:
        # Not its message, which may quote the prompt.
        where = "".join(traceback.format_tb(error.__traceback__))
        LOG.error("%s failed with %s\n%s", request.id, type(error).__name__, where)
    return problem


def _noted(error_event: Callable[[HttpError], bytes]) -> Callable[[HttpError], bytes]:
    """A relay is told the status of an error within a stream."""
    return lambda error: error_event(error) + Note(failed=error.status).event()


def _headers_of(answer: Response) -> dict[str, str]:
    return {
        "content-type": answer.media_type,
        "content-length": str(len(answer.body)),
        **answer.headers,
    }


def _head(status: int, headers: Mapping[str, str], request: Request) -> Message:
    """ASGI's message for the head of an answer; what cannot stand in a header becomes `?`."""
    lines = [(name.encode(), _NOT_IN_A_HEADER.sub("?", value).encode()) for name, value in headers.items()]
    lines.append((b"x-request-id", request.id.encode()))
    return {"type": "http.response.start", "status": status, "headers": lines}


def _log(request: Request, status: int) -> None:
    """One line, but for probes that go well: the path is as it was sent, without its query or the body."""
    if status == 200 and request.scope["raw_path"].startswith(b"/health"):
        return
    usages = [reply.completion.usage for reply in request.replies if reply.completion is not None]
    LOG.info(
        "%s %s %d %.1f ms prompt=%d reused=%d reply=%d key=%s id=%s",
        request.scope["method"],
        request.scope["raw_path"].decode("latin-1")[:200],
        status,
        (time.monotonic() - request.arrived) * 1e3,
        sum(len(reply.prompt.token_ids) for reply in request.replies),
        sum(usage.reused_tokens for usage in usages),
        sum(reply.tokens for reply in request.replies),
        request.caller.name or "-",
        request.id,
    )
