"""Where a body is read: at once, or in a thread where that takes long."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from kvfold.runtime.server.app import Application
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.http import HttpError, Request, Response
from kvfold.runtime.server.route_table import Route, Routes
from kvfold.runtime.server.routes.shared import LONG_BODY_BYTES, read_ask
from kvfold.runtime.server.state import ServerState
from tests.runtime.server.asgi_client import Answer, ask


def reader(fields: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    if "wrong" in fields:
        raise HttpError(400, "wrong", param="wrong")
    return threading.current_thread().name


def post(value: Any, headers: Mapping[str, str] | None = None) -> Answer:
    async def tell(request: Request, state: ServerState) -> Response:
        return Response.json(await read_ask(request, reader))

    state = ServerState("puppet", Gate())
    app = Application(Routes([Route("POST", "/tell", tell)]), state)
    return asyncio.run(ask(app, "POST", "/tell", value, headers))


def test_a_long_body_is_read_in_a_thread_and_a_short_one_at_once() -> None:
    here = threading.current_thread().name
    assert post({"a": "b"}).json() == here
    assert post({"a": "b" * LONG_BODY_BYTES}).json() != here


@pytest.mark.parametrize("length", [1, LONG_BODY_BYTES])
def test_what_is_wrong_is_told_the_same_way(length: int) -> None:
    long = "b" * length
    assert post({"wrong": long}).error["param"] == "wrong"
    assert post(json.dumps(["a", long]).encode()).status == 400
    assert post({"a": long}, {"content-type": "text/plain"}).status == 415
