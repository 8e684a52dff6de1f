"""Token sequences compared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def common_prefix(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """Tokens of `prompt` that a cache of `cached` already covers; at least one is left to compute."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(cached, prompt, strict=False)))
    return min(same, len(prompt) - 1)
