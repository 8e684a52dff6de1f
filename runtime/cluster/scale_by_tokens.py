"""How many replicas there should be: by prompt tokens that wait on them, and replies that they write."""

from __future__ import annotations

import math
from typing import Any

# What replicas tell of themselves.
WAITING_TOKENS, REPLIES = "waiting_tokens", "replies"


class ScaleByTokens:
    """Ray Serve's autoscaling policy; Ray applies bounds, delays and factors to what it says."""

    def __init__(self, waiting_tokens: int, replies: int) -> None:
        """So many prompt tokens may wait on each replica, which writes so many replies at once."""
        self._limits = {WAITING_TOKENS: waiting_tokens, REPLIES: replies}

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas there should be, and a state that is not used."""
        told = context.aggregated_metrics or {}
        wanted = [sum(told.get(name, {}).values()) / limit for name, limit in self._limits.items()]
        return max(1, *map(math.ceil, wanted)), {}
