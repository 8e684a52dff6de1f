"""ServedReplica: one engine and its HTTP application, in a process whose life is somebody else's."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvfold.plugins.contract.errors import EngineError
from kvfold.runtime.cluster.scale_by_tokens import REPLIES, WAITING_TOKENS

if TYPE_CHECKING:
    import uvicorn

    from kvfold.runtime.cluster.cluster_settings import ClusterSettings
    from kvfold.runtime.server.start.run_server import Loaded
    from kvfold.runtime.server.start.server_settings import ServerSettings

LOOK_SECONDS = 0.25


class ServedReplica:
    """A server without signals: it is started, looked at and closed by its owner.

    Attributes:
        app: the ASGI application.
    """

    def __init__(self, model_name: str, settings: ServerSettings, relay_key: str | None) -> None:
        """Without a model yet; raises as `make_application`."""
        from kvfold.runtime.server.start.make_application import make_application

        self.app, self._state = make_application(model_name, settings, relay_key)
        self._drain_seconds = settings.drain_seconds
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    def load(self, load: Callable[[], Loaded]) -> None:
        """Read the model; raises what `load` raises."""
        self._state.loaded(*load())

    def start(self) -> None:
        """Keep the history, in this event loop."""
        self._looking = asyncio.create_task(self._look())

    def listen(self, host: str) -> int:
        """Serve on a free port of an address, in this event loop; the port."""
        from kvfold.runtime.server.start.run_server import make_http_server

        self._server = make_http_server(self.app)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, 0), family=family)
        port: int = sock.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets=[sock]))
        return port

    def check_health(self) -> None:
        """Raise EngineError where it must be started again: the engine failed or hangs."""
        if self._state.loaded_llm is None or self._state.draining:
            return
        reason = self._state.why_not_ready()
        if reason is not None:
            raise EngineError(f"{reason}; a new replica takes its place")

    def routing_stats(self) -> dict[str, float]:
        """What a router compares."""
        snapshot = self._state.llm.snapshot()
        rate = snapshot.prefill_rate
        return {
            "told": time.time(),
            "wait_seconds": self._state.admission.wait_seconds(rate),
            "prefill_rate": rate,
            "free_pages": 1 - snapshot.metrics.used_bytes / snapshot.metrics.kv_cache_bytes,
        }

    def scaling_stats(self) -> dict[str, float]:
        """What autoscaling goes by."""
        admission = self._state.admission
        return {WAITING_TOKENS: float(admission.waiting_tokens), REPLIES: float(admission.inside)}

    async def close(self) -> None:
        """Let replies finish, as long as the settings say; then end."""
        self._state.draining = True
        llm = self._state.loaded_llm
        if llm is not None and llm.failure is None:
            await llm.drain(self._drain_seconds)
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        if self._looking is not None:
            self._looking.cancel()
        if llm is not None:
            await llm.close()

    async def _look(self) -> None:
        while True:
            self._state.look()
            await asyncio.sleep(LOOK_SECONDS)


def load_bundle(settings: ClusterSettings) -> Loaded:
    """Read a cluster's bundle on this machine; its pages are kept where `kvfold serve` keeps them.

    Raises:
        BundleError: the bundle is not at this path here, or is damaged.
        RequestError: as `kept_pages`.
        KvfoldError: as `LLM.load`.
    """
    from kvfold.runtime.server.start.kept_pages import kept_pages
    from kvfold.runtime.server.start.load_served import load_served

    server = settings.server
    llm, compiler = load_served(settings.bundle, settings.target, {**settings.engine, **kept_pages(server)})
    return llm, compiler, server.limits(llm.llm.config.max_num_seqs)
