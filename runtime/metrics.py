"""Counters of the cache and the scheduler: each says one thing, and none hides another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CacheMetrics:
    """Tokens, unless said otherwise, since the LLM was made.

    Attributes:
        queried_tokens: prompt tokens of admitted requests.
        hit_tokens: of these, reused from the radix tree or a session's kept sequence.
        loaded_tokens: brought from the tier below into the tree.
        too_short_tokens: matched in the tree but computed all the same, since the window tail that
            a longer hit needs was gone.
        recomputed_tokens: computed a second time after a preemption.
        preemptions: requests that gave up their pages to an older one.
        resumed_turns: session turns that went on from the kept sequence.
        rematched_turns: session turns that could not, and looked in the radix tree instead.
        reclaimed_sessions: kept sequences of idle sessions that were given up for running requests.
    """

    queried_tokens: int = 0
    hit_tokens: int = 0
    loaded_tokens: int = 0
    too_short_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    resumed_turns: int = 0
    rematched_turns: int = 0
    reclaimed_sessions: int = 0


@dataclass(frozen=True)
class PoolUsage:
    """Pages of one horizon group now.

    Attributes:
        page_bytes: bytes of a page.
        idle: pages held by the radix tree only; evicted when needed.
        in_use: pages held by a request or a session.
    """

    page_bytes: int
    idle: int
    in_use: int


@dataclass(frozen=True)
class Metrics:
    """A snapshot.

    Attributes:
        cache: counters.
        pools: pages by group name.
        kv_cache_bytes: that all of them may take.
        evicted_pages: pages that eviction freed so far.
    """

    cache: CacheMetrics
    pools: dict[str, PoolUsage]
    kv_cache_bytes: int
    evicted_pages: int

    @property
    def used_bytes(self) -> int:
        """Bytes of pages that a request or a session holds."""
        return sum(pool.in_use * pool.page_bytes for pool in self.pools.values())

    @property
    def idle_bytes(self) -> int:
        """Bytes of pages that the radix tree alone holds."""
        return sum(pool.idle * pool.page_bytes for pool in self.pools.values())

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody holds."""
        return self.kv_cache_bytes - self.used_bytes - self.idle_bytes


@dataclass(frozen=True)
class PrefixMatch:
    """What the cache had of a prompt when its request was let in.

    Attributes:
        matched_tokens: of its beginning, found in the tree.
        hit_tokens: of these, reused.
        gone: groups whose pages at the end of the match were evicted, where the hit is shorter than it.
        resumed: it went on from its session's kept sequence, and the tree was not asked.
    """

    matched_tokens: int = 0
    hit_tokens: int = 0
    gone: tuple[str, ...] = ()
    resumed: bool = False


@dataclass(frozen=True)
class Usage:
    """What one request cost.

    Attributes:
        prompt_tokens: tokens of the prompt.
        reused_tokens: of these, taken from the cache.
        prefilled_tokens: of these, computed; prompt_tokens == reused_tokens + prefilled_tokens once
            the first token is out.
        completion_tokens: tokens generated, an end-of-sequence token included.
        recomputed_tokens: computed a second time after a preemption.
        queued_seconds: from submission to the step that first computed for it.
        time_to_first_token: seconds from submission to the first token; None if there was none.
        tokens_per_second: rate after the first token; None below two tokens.
        match: what the cache had of the prompt; None where it was never let in.
    """

    prompt_tokens: int
    reused_tokens: int
    prefilled_tokens: int
    completion_tokens: int
    recomputed_tokens: int
    queued_seconds: float
    time_to_first_token: float | None
    tokens_per_second: float | None
    match: PrefixMatch | None = None
