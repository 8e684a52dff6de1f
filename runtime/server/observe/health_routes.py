"""Routes that tell how the server is: alive, ready, its version, its metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.server.http import Request, Response
from kvfold.runtime.server.observe.collector import ServerCollector
from kvfold.runtime.server.route_table import Route
from kvfold.runtime.server.state import ServerState


async def live(request: Request, state: ServerState) -> Response:
    """200 while the loop of asyncio runs; a process that does not answer should be restarted."""
    return Response.json({"status": "live"})


async def ready(request: Request, state: ServerState) -> Response:
    """200 while requests are taken, else 503; a word says why: a probe learns no more."""
    reason = state.why_not_ready() or "ready"
    return Response.json({"status": reason.partition(":")[0]}, 200 if reason == "ready" else 503)


async def health(request: Request, state: ServerState) -> Response:
    """The same with a sentence."""
    reason = state.why_not_ready()
    if reason is None:
        return Response.json({"status": "ready"})
    return Response.json({"status": "not ready", "reason": reason}, status=503)


async def version(request: Request, state: ServerState) -> Response:
    """kvfold's."""
    return Response.json({"version": VERSION})


def health_routes(state: ServerState) -> list[Route]:
    """The routes of one server."""
    registry = CollectorRegistry()
    registry.register(ServerCollector(state))
    ProcessCollector(registry=registry)

    async def metrics(request: Request, state: ServerState) -> Response:
        """Prometheus' text, or OpenMetrics where the scraper asks for it."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=media_type)

    return [
        Route("GET", "/health/live", live, "anyone"),
        Route("GET", "/health/ready", ready, "probe"),
        Route("GET", "/health", health, "any key"),
        Route("GET", "/version", version, "any key"),
        Route("GET", "/metrics", metrics, "metrics"),
    ]
