"""A cluster on Ray Serve: what Ray calls of ours, and what a killed replica costs its clients: nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from kvfold.runtime.cluster.build_cluster import engine_options
from kvfold.runtime.cluster.cluster_settings import ClusterSettings
from kvfold.runtime.cluster.served_replica import ServedReplica
from tests.runtime.cluster.many_chats import ManyChats
from tests.runtime.cluster.ray_cluster import RayCluster, ray_cluster
from tests.runtime.cluster.tiny_replica import TinyReplica
from tests.runtime.server.processes.real_server import MODEL, write_tokenizer

CHATS, TURNS, AT_ONCE = 100, 4, 16
# As much in two replicas as one engine alone has.
PAGES = 4096
# While this many replies have begun, of 400: in the third turn.
KILL_AT = 250
# Longer than replicas take to see what others wrote into their folder.
REST_SECONDS = 6.5

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None, reason="ray is not installed: pip install 'kvfold[ray]'"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("cluster")
    shared, key = str(folder / "state"), "a secret of this test"
    tiny = TinyReplica(PAGES)
    with ray_cluster(folder, port, tiny, replicas=2, relay_key=key, state_dir=shared) as running:
        yield running


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ManyChats]:
    """All chats on one server with the memory of all replicas, by their name."""
    folder = tmp_path_factory.mktemp("alone")
    write_tokenizer(folder)
    settings = ClusterSettings(bundle=folder, model_name=MODEL)

    async def both() -> dict[str, ManyChats]:
        served = ServedReplica(MODEL, settings.server, None)
        served.load(lambda: TinyReplica(2 * PAGES)(settings))
        url = f"http://127.0.0.1:{served.listen('127.0.0.1')}"
        found = {name: ManyChats(name) for name in ("quiet", "stirs")}
        for chats in found.values():
            await chats.run(url, CHATS, TURNS, AT_ONCE)
        await served.close()
        return found

    return asyncio.run(both())


@pytest.mark.parametrize(("relays", "haproxy", "ours"), [(1, "1", True), (0, "0", True), (0, "1", False)])
def test_haproxy_in_front_of_replicas_places_requests_itself(
    relays: int, haproxy: str, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray refuses a router of our own there; behind a relay it is asked as ever."""
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", haproxy)
    options = engine_options(ClusterSettings(bundle=Path("x"), relays=relays))
    assert ("request_router_config" in options) is ours


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def chat(cluster: RayCluster, name: str, kill_at: int | None = None, rest: float = 0.0) -> ManyChats:
    chats = ManyChats(name)

    def meanwhile(begun: int) -> None:
        if begun == kill_at:
            os.kill(min(cluster.replicas()), signal.SIGKILL)

    asyncio.run(chats.run(cluster.url, CHATS, TURNS, AT_ONCE, meanwhile=meanwhile, rest=rest))
    return chats


def test_chats_find_their_prompts_as_on_one_engine_of_the_same_memory(
    cluster: RayCluster, alone: dict[str, ManyChats]
) -> None:
    chats = chat(cluster, "quiet")
    assert chats.broken == []
    assert chats.texts == alone["quiet"].texts
    assert chats.hit_rate > alone["quiet"].hit_rate - 0.05


def test_a_killed_replica_breaks_no_request_and_no_stream(
    cluster: RayCluster, alone: dict[str, ManyChats]
) -> None:
    before = cluster.replicas()
    chats = chat(cluster, "stirs", KILL_AT, REST_SECONDS)
    assert chats.broken == []
    assert chats.texts == alone["stirs"].texts
    assert len(before & cluster.replicas()) == 1
    # What the dead one had, the other one reads from the folder that they share.
    assert chats.hit_rate > alone["stirs"].hit_rate - 0.05


def test_ray_starts_another_one_in_its_place(cluster: RayCluster) -> None:
    wait_until(lambda: len(cluster.replicas()) == 2)
    assert cluster.ask("/health/ready") == (200, {"status": "ready"})
    status, (group,) = cluster.ask("/v1/kvfold/replicas")
    assert status == 200 and len(set(group["targets"])) == 2


def test_a_deployment_replaces_another_and_breaks_nothing(cluster: RayCluster) -> None:
    before = cluster.replicas()
    chats = ManyChats("moved")

    def meanwhile(begun: int) -> None:
        if begun == AT_ONCE:
            cluster.deploy(max_waiting=99)

    async def until_deployed() -> None:
        await chats.run(cluster.url, 20, 1, AT_ONCE, meanwhile=meanwhile)
        while not cluster.deployed:
            await chats.run(cluster.url, 20, 1, AT_ONCE)

    asyncio.run(until_deployed())
    assert chats.broken == []
    wait_until(lambda: not before & cluster.replicas())
