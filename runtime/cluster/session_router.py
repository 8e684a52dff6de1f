"""SessionRouter: our placement as Ray Serve's RequestRouter, made when Ray looks it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any

from kvfold.runtime.cluster.placement import Asked, Homes, Standing, rank_replicas

ROUTER = f"{__name__}.SessionRouter"


class Placing:
    """What the router adds to Ray's: everything but Ray."""

    def initialize_state(self, **_: Any) -> None:
        """Ray calls it once."""
        self._homes = Homes()
        self._sent: dict[str, tuple[float, int]] = {}

    async def choose_replicas(
        self, candidate_replicas: Sequence[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        """Replicas, the best first, each a rank of its own."""
        if pending_request is None:
            return [list(candidate_replicas)]
        pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        asked = _asked(pending_request)
        home = self._homes.find(asked.key, by_name)
        stands = [self._standing(name, replica.routing_stats) for name, replica in by_name.items()]
        ranked = rank_replicas(asked, stands, home)
        if ranked:
            self._homes.settle(asked.key, ranked[0])
            if ranked[0] != home:
                told, sent = self._sent[ranked[0]]
                self._sent[ranked[0]] = told, sent + asked.tokens
        return [[by_name[name]] for name in ranked]

    def _standing(self, name: str, stats: Mapping[str, float]) -> Standing:
        """As the replica told lately; what was sent there before it told counts no more."""
        told = stats.get("told", 0.0)
        if self._sent.get(name, (-1.0, 0))[0] != told:
            self._sent[name] = told, 0
        return Standing(
            name,
            stats.get("wait_seconds", 0.0),
            stats.get("prefill_rate", 0.0),
            stats.get("free_pages", 1.0),
            self._sent[name][1],
        )


def _asked(pending_request: Any) -> Asked:
    """What a relay says of a request; of one that comes from Ray's proxy, only the session is known."""
    arguments = pending_request.args
    if arguments and isinstance(arguments[0], Asked):
        return arguments[0]
    metadata = pending_request.metadata
    name = metadata.session_id or metadata.internal_request_id
    return Asked(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big"), 0)


@cache
def _session_router() -> type:
    from ray.serve.request_router import RequestRouter

    return type("SessionRouter", (Placing, RequestRouter), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """The class that Ray asks for by its name."""
    if name != "SessionRouter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _session_router()
