"""Which replica a request goes to, without Ray."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

from kvfold.runtime.cluster.placement import Asked, Homes, Standing, rank_replicas
from kvfold.runtime.cluster.session_router import Placing

NAMES = ("a", "b", "c")
IDLE = [Standing(name, prefill_rate=1000) for name in NAMES]


def test_a_conversation_stays_where_it_was() -> None:
    for home in NAMES:
        assert rank_replicas(Asked(7, 100), IDLE, home)[0] == home


def test_keys_spread_and_mostly_keep_their_replica_when_one_comes() -> None:
    before = {key: rank_replicas(Asked(key, 100), IDLE, None)[0] for key in range(3000)}
    assert min(Counter(before.values()).values()) > 800
    more = [*IDLE, Standing("d", prefill_rate=1000)]
    after = {key: rank_replicas(Asked(key, 100), more, None)[0] for key in range(3000)}
    moved = [key for key in before if before[key] != after[key]]
    assert all(after[key] == "d" for key in moved) and len(moved) < 1000


def test_it_moves_when_waiting_costs_more_than_computing_it_again() -> None:
    def best(wait: float, tokens: int) -> str:
        stands = [Standing("a", wait, 1000), Standing("b", 0, 1000)]
        return rank_replicas(Asked(7, tokens), stands, "a")[0]

    assert best(2.0, 1000) == "b"  # two seconds of waiting, one of computing
    assert best(2.0, 3000) == "a"
    assert best(0.4, 0) == "a"  # not for nothing


def test_free_pages_decide_between_equals() -> None:
    stands = [Standing("a", 9), Standing("b", free_pages=0.1), Standing("c", free_pages=0.8)]
    assert rank_replicas(Asked(7, 10), stands, "a") == ["c", "b", "a"]


def test_what_was_tried_comes_last() -> None:
    assert rank_replicas(Asked(7, 10, ("a", "b")), IDLE, "a")[0] == "c"


def test_the_longest_unused_home_is_forgotten() -> None:
    homes = Homes(limit=2)
    for key in (1, 2, 1, 3):
        homes.settle(key, "a")
    assert [homes.find(key, NAMES) for key in (1, 2, 3)] == ["a", None, "a"]
    assert homes.find(1, ("b",)) is None


def replica(name: str, **stats: float) -> Any:
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), routing_stats=stats)


def pending(asked: Asked | None = None, session: str = "") -> Any:
    metadata = SimpleNamespace(session_id=session, internal_request_id="one of many")
    return SimpleNamespace(args=[asked], metadata=metadata, routing_context=SimpleNamespace())


def choose(router: Placing, replicas: list[Any], request: Any) -> str:
    ranks = asyncio.run(router.choose_replicas(replicas, request))
    assert sorted(one.replica_id.unique_id for (one,) in ranks) == sorted(NAMES)
    name: str = ranks[0][0].replica_id.unique_id
    return name


def test_a_burst_between_two_reports_does_not_go_to_one_replica() -> None:
    router = Placing()
    router.initialize_state()
    replicas = [replica("a", wait_seconds=5, told=1), replica("b", told=1), replica("c", told=1)]
    found = Counter(choose(router, replicas, pending(Asked(key, 4000))) for key in range(30))
    assert found["b"] > 8 and found["c"] > 8
    told_again = [replica(name, told=2, wait_seconds=0 if name == "a" else 90) for name in NAMES]
    assert choose(router, told_again, pending(Asked(99, 4000))) == "a"


def test_without_a_relay_the_session_of_rays_own_header_decides() -> None:
    router = Placing()
    router.initialize_state()
    replicas = [replica(name) for name in NAMES]
    first = {name: choose(router, replicas, pending(session=name)) for name in map(str, range(20))}
    assert len(set(first.values())) == 3
    assert first == {name: choose(router, replicas, pending(session=name)) for name in first}


def test_ray_may_ask_without_a_request() -> None:
    router = Placing()
    router.initialize_state()
    assert len(asyncio.run(router.choose_replicas([replica("a"), replica("b")]))[0]) == 2
