"""What Ray Serve runs: an engine's process, and a relay's. Ray calls what it finds by name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from kvfold.runtime.cluster.passage import BUSY, Chosen
from kvfold.runtime.cluster.placement import Asked
from kvfold.runtime.cluster.relay import Relay
from kvfold.runtime.cluster.resumable_stream import UNAVAILABLE
from kvfold.runtime.cluster.served_replica import ServedReplica
from kvfold.runtime.server.http import HttpError, Scope

if TYPE_CHECKING:
    from kvfold.runtime.cluster.cluster_settings import ClusterSettings
    from kvfold.runtime.server.start.run_server import Loaded

Load = Callable[["ClusterSettings"], "Loaded"]


class Engine:
    """A replica: its server listens on a port of its own for relays, or is Ray's ingress itself."""

    def __init__(self, settings: ClusterSettings, load: Load, relay_key: str | None) -> None:
        """Load the model; without a `relay_key` there is no relay, and Ray passes requests to its ingress."""
        self._served = ServedReplica(settings.name, settings.server, relay_key)
        self._served.load(lambda: load(settings))
        self._listens = relay_key is not None
        self._address = ""

    def address(self) -> str:
        """Where its server listens."""
        return self._address

    async def record_replica_metadata(self) -> dict[str, str]:
        """What relays are told of it, once."""
        import ray.util

        self._served.start()
        if self._listens:
            host = ray.util.get_node_ip_address()
            self._address = f"{host}:{self._served.listen(host)}"
        return {"address": self._address}

    def record_routing_stats(self) -> dict[str, float]:
        """What a router compares, again and again."""
        return self._served.routing_stats()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What ScaleByTokens goes by."""
        return self._served.scaling_stats()

    def check_health(self) -> None:
        """Raise where Ray must start another in its place."""
        self._served.check_health()

    def __serve_build_asgi_app__(self) -> Any:
        """Ray's ingress, where there is no relay."""

        async def app(scope: Scope, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                for state in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{state}.complete"})
                return
            await self._served.app(scope, receive, send)

        return app

    async def __del__(self) -> None:
        """Ray ends it: requests that came through relays have ended, or have run out of time."""
        await self._served.close()


class Front:
    """A relay as Ray's ingress."""

    def __init__(self, engines: Any, relay_key: str, patience: float) -> None:
        """In front of a deployment of Engine."""
        self._engines = engines
        self._relay = Relay(self._choose, self._addresses, relay_key, patience)

    def __serve_build_asgi_app__(self) -> Relay:
        """Ray's ingress."""
        return self._relay

    async def _addresses(self) -> list[str]:
        told = await self._engines.broadcast("address").results_async(return_exceptions=True)
        return [address for address in told if isinstance(address, str)]

    @asynccontextmanager
    async def _choose(self, asked: Asked) -> AsyncIterator[Chosen]:
        """A place on a replica, which Ray counts as a request of it until the context ends."""
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        holding = self._engines.choose_replica(asked)
        try:
            selection = await holding.__aenter__()
        except BackPressureError:
            raise HttpError(BUSY, "all replicas are busy", headers={"retry-after": "1"}) from None
        except DeploymentUnavailableError as error:
            raise HttpError(UNAVAILABLE, f"there is no replica: {error}") from None
        try:
            yield Chosen(selection.replica_id, selection.replica_metadata["address"])
        finally:
            await holding.__aexit__(None, None, None)
