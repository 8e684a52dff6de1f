"""The replies that ended last, for whoever asks why one was slow, or found nothing in the cache."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from kvfold.runtime.metrics import Usage

KEPT = 256


@dataclass(frozen=True)
class EndedReply:
    """A reply that ended.

    Attributes:
        number: counts the replies that ended.
        id: of its request in the loop.
        tenant: whose it was.
        reason: `stop`, `length`, `error`, or who cancelled it: `client`, `deadline`, `drain`.
        clock: of its end, as of `time.monotonic`.
        seconds: from the first byte of its request to its end.
        usage: what it cost.
    """

    number: int
    id: int
    tenant: str
    reason: str
    clock: float
    seconds: float
    usage: Usage


class RecentReplies:
    """A ring of them."""

    def __init__(self) -> None:
        """Empty."""
        self._ended: deque[EndedReply] = deque(maxlen=KEPT)
        self._count = 0

    def add(self, request_id: int, tenant: str, reason: str, seconds: float, usage: Usage) -> None:
        """One more."""
        self._count += 1
        self._ended.append(
            EndedReply(self._count, request_id, tenant, reason, time.monotonic(), seconds, usage)
        )

    def after(self, number: int) -> list[EndedReply]:
        """Those that ended after a number, as far as they are kept; the oldest first."""
        return [ended for ended in self._ended if ended.number > number]
