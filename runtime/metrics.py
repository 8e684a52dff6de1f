"""Counters of the cache and the scheduler: each says one thing, and none hides another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CacheMetrics:
    """Tokens, unless said otherwise, since the LLM was made.

    Attributes:
        queried_tokens: prompt tokens of admitted requests.
        hit_tokens: of these, reused from the radix tree or a session's kept sequence.
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
    too_short_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    resumed_turns: int = 0
    rematched_turns: int = 0
    reclaimed_sessions: int = 0


@dataclass(frozen=True)
class PoolUsage:
    """Pages of one horizon group now: total == free + idle + in_use.

    Attributes:
        total: pages of the pool.
        free: held by nobody.
        idle: held by the radix tree only; evicted when needed.
        in_use: held by a request or a session.
    """

    total: int
    free: int
    idle: int

    @property
    def in_use(self) -> int:
        """Pages held by a request or a session."""
        return self.total - self.free - self.idle


@dataclass(frozen=True)
class Metrics:
    """A snapshot: counters, pages by group name, and pages that eviction freed so far."""

    cache: CacheMetrics
    pools: dict[str, PoolUsage]
    evicted_pages: int


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
