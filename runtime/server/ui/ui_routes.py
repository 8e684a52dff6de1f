"""The page's routes: three files without secrets, which everybody may read, and the data, which not."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from kvfold.runtime.server.http import Request, Response
from kvfold.runtime.server.route_table import Handler, Route
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.ui.watching import Watching

PAGE = "index.html"
ASSETS = {"page.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def ui_routes() -> list[Route]:
    """The page, its files, and what it shows."""
    watching = Watching()
    assets = [Route("GET", f"/ui/{name}", _file(name, kind), "anyone") for name, kind in ASSETS.items()]
    return [
        Route("GET", "/ui", _file(PAGE, "text/html"), "anyone"),
        Route("GET", "/ui/", _without_slash, "anyone"),
        *assets,
        Route("GET", "/v1/kvfold/events", watching.events, "any key"),
        Route("GET", "/v1/kvfold/cache", watching.cache),
    ]


def _file(name: str, media_type: str) -> Handler:
    async def send(request: Request, state: ServerState) -> Response:
        """A file of the page, as it was installed."""
        return Response(_read(name), media_type=f"{media_type}; charset=utf-8", headers=HEADERS)

    return send


async def _without_slash(request: Request, state: ServerState) -> Response:
    """The page's place, wherever a proxy puts it: its files are named from there."""
    return Response(status=308, media_type="text/plain; charset=utf-8", headers={"location": "../ui"})


@cache
def _read(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()
