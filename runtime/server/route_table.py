"""The table of routes: which handler answers a method and a path, and who may ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from kvfold.runtime.server.caller import Access
from kvfold.runtime.server.http import EventStream, HttpError, Request, Response, openai_error
from kvfold.runtime.server.state import ServerState

Handler = Callable[[Request, ServerState], Awaitable[Response | EventStream]]


@dataclass(frozen=True)
class Route:
    """A line of the table.

    Attributes:
        method: such as `GET`, which answers HEAD too.
        path: such as `/v1/models/{id}`; a part in braces takes any one part and goes to `path_params`.
        handler: what answers.
        access: who may use it.
        error_body: the form of errors, of the guard's too.
    """

    method: str
    path: str
    handler: Handler
    access: Access = "inference"
    error_body: Callable[[HttpError], dict[str, Any]] = openai_error


class Routes:
    """Routes by path, then by method."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Two routes never share method and path."""
        self._by_shape: dict[tuple[str | None, ...], dict[str, Route]] = {}
        for route in routes:
            shape = tuple(None if part.startswith("{") else part for part in route.path.split("/"))
            methods = self._by_shape.setdefault(shape, {})
            assert route.method not in methods, route
            methods[route.method] = route
        self._with_params = [shape for shape in self._by_shape if None in shape]

    def find(self, method: str, raw_path: bytes) -> tuple[Route, Mapping[str, str]]:
        """The route of a request, and the parts of its path that the route names.

        Raises:
            HttpError: 404 there is no such path; 405 it knows other methods.
        """
        parts = tuple(unquote(part) for part in raw_path.decode("latin-1").split("/"))
        shape = self._shape(parts)
        if shape is None:
            raise HttpError(
                404, f"there is no {'/'.join(parts)!r:.200} here; docs/serving.md lists the routes"
            )
        methods = self._by_shape[shape]
        if method not in methods:
            allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            raise HttpError(405, f"{method} is not answered here; use {allowed}", headers={"allow": allowed})
        route = methods[method]
        named = zip(route.path.split("/"), parts, strict=True)
        return route, {name.strip("{}"): part for name, part in named if name.startswith("{")}

    def _shape(self, parts: tuple[str, ...]) -> tuple[str | None, ...] | None:
        if parts in self._by_shape:
            return parts
        for shape in self._with_params:
            if len(shape) == len(parts) and all(
                part if name is None else name == part for name, part in zip(shape, parts, strict=True)
            ):
                return shape
        return None
