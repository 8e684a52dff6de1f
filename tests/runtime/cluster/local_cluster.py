"""Replicas and a relay in one process, without Ray: sockets between them, and a test that kills."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvfold.runtime.cluster.cluster_settings import ClusterSettings
from kvfold.runtime.cluster.placement import Asked, Homes, Standing, rank_replicas
from kvfold.runtime.cluster.relay import Chosen, Relay
from kvfold.runtime.cluster.served_replica import ServedReplica
from tests.runtime.cluster.tiny_replica import TinyReplica
from tests.runtime.server.processes.real_server import MODEL, write_tokenizer

KEY = "secret"


@dataclass
class LocalReplica:
    """One that can be killed."""

    name: str
    served: ServedReplica
    port: int
    places: int = 0
    asked: list[Asked] = field(default_factory=list)

    def kill(self) -> None:
        """What its process's end does to its sockets."""
        server: Any = self.served._server
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()


class LocalCluster:
    """Places requests as the router does, with loads that a test sets.

    Attributes:
        replicas: those that live.
        relay: in front of them.
    """

    def __init__(self, replicas: list[LocalReplica], patience: float) -> None:
        """All of them live."""
        self.replicas = {replica.name: replica for replica in replicas}
        self.relay = Relay(self.choose, KEY, patience)
        self.homes = Homes()

    @asynccontextmanager
    async def choose(self, asked: Asked) -> AsyncIterator[Chosen]:
        """A place on a replica."""
        home = self.homes.find(asked.key, self.replicas)
        stands = [Standing(name) for name in self.replicas]
        replica = self.replicas[rank_replicas(asked, stands, home)[0]]
        self.homes.settle(asked.key, replica.name)
        replica.places += 1
        replica.asked.append(asked)
        try:
            yield Chosen(replica.name, f"127.0.0.1:{replica.port}")
        finally:
            replica.places -= 1

    def busy(self) -> list[LocalReplica]:
        """Those that have a request."""
        return [replica for replica in self.replicas.values() if replica.places]

    def kill_busy(self) -> bool:
        """End the one that has a request, which the router hears of; False where none has."""
        busy = self.busy()
        for replica in busy:
            self.replicas.pop(replica.name).kill()
        return bool(busy)


@asynccontextmanager
async def local_cluster(
    folder: Path,
    replicas: int = 2,
    load: TinyReplica | None = None,
    patience: float = 10.0,
    max_waiting: int | None = None,
) -> AsyncIterator[LocalCluster]:
    """A cluster that is closed at the end."""
    write_tokenizer(folder)
    settings = ClusterSettings(bundle=folder, model_name=MODEL, drain_seconds=1, max_waiting=max_waiting)
    made: list[LocalReplica] = []
    for number in range(replicas):
        served = ServedReplica(MODEL, settings.server, KEY)
        served.load(lambda: (load or TinyReplica())(settings))
        served.start()
        made.append(LocalReplica(f"r{number}", served, served.listen("127.0.0.1")))
    cluster = LocalCluster(list(made), patience)
    try:
        yield cluster
    finally:
        for replica in made:
            await replica.served.close()
        await cluster.relay.client.close()
