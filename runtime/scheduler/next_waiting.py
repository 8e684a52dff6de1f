"""Which waiting request is let in next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from kvfold.runtime.scheduler.request import Request

# How many waiting requests are compared for the longest cached prefix, and how often younger ones
# may go before an older one.
LOOKAHEAD = 16
MAX_OVERTAKEN = 8


def next_waiting(
    waiting: Sequence[Request], running: Sequence[Request], reusable: Callable[[Request], int]
) -> tuple[Request, Sequence[Request]]:
    """Who goes next, and whom it overtakes: by priority, then of the tenant that has least running.

    Among those the longest cached prefix goes first, unless the oldest was preempted or overtaken too often.

    Args:
        waiting: at least one, the oldest first.
        running: who has pages.
        reusable: tokens that a request would take from the cache now.
    """
    first = min(request.priority for request in waiting)
    equals = [request for request in waiting if request.priority == first]
    load = Counter(request.prefix.tenant for request in running)
    least = min(load[request.prefix.tenant] for request in equals)
    candidates = [request for request in equals if load[request.prefix.tenant] == least]
    oldest = candidates[0]
    if len(candidates) == 1 or oldest.preempted or oldest.overtaken >= MAX_OVERTAKEN:
        return oldest, ()
    chosen = max(candidates[:LOOKAHEAD], key=reusable)
    return chosen, candidates[: candidates.index(chosen)]
