"""Which replica a request goes to: where its conversation's pages are, unless others are so much less busy.

All that is compared is seconds until the first token: what waits there, and what would be computed again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

# A conversation does not move for less.
MOVE_SECONDS = 0.5
# Tokens a second, of a replica that has measured none yet.
UNMEASURED_RATE = 1000.0
MAX_HOMES = 65536


@dataclass(frozen=True)
class Asked:
    """What is known of a request before it is sent.

    Attributes:
        key: the same for all requests of a conversation, 64 bits.
        tokens: about how many its prompt has.
        tried: replicas that refused or lost it.
    """

    key: int
    tokens: int
    tried: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """How a replica stands.

    Attributes:
        name: of the replica.
        wait_seconds: until what waits there has begun.
        prefill_rate: prompt tokens a second; 0 is unknown.
        free_pages: share of the cache's bytes that no request or session holds, 0 to 1.
        sent: prompt tokens that were sent there since it told the rest.
    """

    name: str
    wait_seconds: float = 0.0
    prefill_rate: float = 0.0
    free_pages: float = 1.0
    sent: int = 0

    def seconds(self, tokens: int) -> float:
        """Until so many tokens more are computed."""
        return self.wait_seconds + (self.sent + tokens) / (self.prefill_rate or UNMEASURED_RATE)


def rank_replicas(asked: Asked, replicas: Sequence[Standing], home: str | None) -> list[str]:
    """Names of replicas, the best first; those that were tried come last.

    Args:
        asked: what is to be placed.
        replicas: all there are.
        home: where the conversation was last, if anybody knows. Else the key chooses: everywhere the same
            replica, and mostly the same one when another comes or goes.
    """
    drawn = {replica.name: _draw(asked.key, replica.name) for replica in replicas}
    if home not in drawn:
        home = max(drawn, key=drawn.__getitem__, default=None)

    def order(replica: Standing) -> tuple[bool, float, float, int]:
        at_home = replica.name == home
        seconds = replica.seconds(0 if at_home else asked.tokens) + (0 if at_home else MOVE_SECONDS)
        return replica.name in asked.tried, round(seconds, 1), -replica.free_pages, -drawn[replica.name]

    return [replica.name for replica in sorted(replicas, key=order)]


def _draw(key: int, name: str) -> int:
    """Rendezvous hashing: a number for each pair."""
    data = key.to_bytes(8, "big") + name.encode()
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


class Homes:
    """Where conversations were last, as far as this process has seen; the longest unused are forgotten."""

    def __init__(self, limit: int = MAX_HOMES) -> None:
        """None is known yet."""
        self._limit = limit
        self._homes: OrderedDict[int, str] = OrderedDict()

    def find(self, key: int, among: Collection[str]) -> str | None:
        """A conversation's replica, if that is there still."""
        home = self._homes.get(key)
        return home if home in among else None

    def settle(self, key: int, name: str) -> None:
        """A conversation is there now."""
        self._homes[key] = name
        self._homes.move_to_end(key)
        if len(self._homes) > self._limit:
            self._homes.popitem(last=False)
