"""Replicas and a relay in one process, without Ray: sockets between them, and a test that kills."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvfold.runtime.cluster.cluster_settings import ClusterSettings
from kvfold.runtime.cluster.passage import Chosen
from kvfold.runtime.cluster.placement import Asked, Homes, Standing, rank_replicas
from kvfold.runtime.cluster.relay import Relay
from kvfold.runtime.cluster.served_replica import ServedReplica
from tests.runtime.cluster.tiny_replica import StepGate, TinyReplica
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
        self.cut()

    def cut(self) -> None:
        """End its connections: new ones may come."""
        server: Any = self.served._server
        for connection in list(server.server_state.connections):
            connection.transport.abort()


class LocalCluster:
    """Places requests as the router does, with loads that a test sets.

    Attributes:
        replicas: those that live.
        relay: in front of them.
        gate: of their engines.
    """

    def __init__(self, replicas: list[LocalReplica], patience: float, gate: StepGate) -> None:
        """All of them live."""
        self.gate = gate
        self.replicas = {replica.name: replica for replica in replicas}
        self.relay = Relay(self.choose, self.addresses, KEY, patience)
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

    async def addresses(self) -> list[str]:
        """Of those that live."""
        return [f"127.0.0.1:{replica.port}" for replica in self.replicas.values()]

    async def kill_after(self, steps: int) -> None:
        """End the replica that has a request when it has taken so many steps; the router hears of it."""
        replica = await self.busy_after(steps)
        self.replicas.pop(replica.name).kill()
        self.gate.allow(math.inf)

    async def cut_after(self, steps: int) -> None:
        """End the connections of that replica instead, which lives on."""
        (await self.busy_after(steps)).cut()
        self.gate.allow(math.inf)

    async def busy_after(self, steps: int) -> LocalReplica:
        """The replica that has a request, when it has taken so many steps; the next one waits."""
        self.gate.allow(steps)
        async with asyncio.timeout(20):
            while not self.gate.holds:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)  # what it said is on its way
        (replica,) = self.busy()
        return replica


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
    gate = StepGate()
    load = replace(load or TinyReplica(), gate=gate)
    settings = ClusterSettings(bundle=folder, model_name=MODEL, drain_seconds=1, max_waiting=max_waiting)
    made: list[LocalReplica] = []
    for number in range(replicas):
        served = ServedReplica(MODEL, settings.server, KEY)
        served.load(lambda: load(settings))
        served.start()
        made.append(LocalReplica(f"r{number}", served, served.listen("127.0.0.1")))
    cluster = LocalCluster(list(made), patience, gate)
    try:
        yield cluster
    finally:
        gate.allow(math.inf)
        for replica in made:
            await replica.served.close()
        await cluster.relay.close()
