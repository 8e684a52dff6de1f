"""StackedTier: tiers of one engine as one: what one gave up, or cannot be asked for, another may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from time import monotonic

import numpy as np

from kvfold.runtime.memory.tiers.chain import Chain
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.memory.tiers.prefix import LoadedPrefix, Wanted
from kvfold.runtime.memory.tiers.tier_state import TierState, TierStats


class StackedTier:
    """Each prefix goes to every tier; it comes from the first one that has all of it.

    What came from a slow tier is in the faster ones again when its sequence ends.
    """

    def __init__(self, tiers: Sequence[KvTier]) -> None:
        """At least one, the fastest first; all of one engine, so that their keys are the same."""
        self._tiers = tuple(tiers)

    # For the owner of the pages

    def chain(self, tenant: str) -> Chain:
        """As of KvTier."""
        return self._tiers[0].chain(tenant)

    def find(self, chain: Chain, tokens: np.ndarray, max_pages: int) -> int:
        """As of KvTier."""
        return max(tier.find(chain, tokens, max_pages) for tier in self._tiers)

    def wanted(self, chain: Chain, tokens: np.ndarray, pages: int) -> Wanted | None:
        """What any tier lacks."""
        asked = [tier.wanted(chain, tokens, pages) for tier in self._tiers]
        lacks = [each for each in asked if each is not None]
        if not lacks:
            return None
        segments = sorted({segment for each in lacks for segment in each.segments})
        return Wanted(pages, tuple(segments), any(each.checkpoint for each in lacks))

    def store(self, chain: Chain, tokens: np.ndarray, wanted: Wanted, rows: Mapping[str, np.ndarray]) -> None:
        """As of KvTier; each takes what it lacks."""
        for tier in self._tiers:
            tier.store(chain, tokens, wanted, rows)

    def load(self, chain: Chain, tokens: np.ndarray, pages: int) -> Future[LoadedPrefix | None]:
        """As of KvTier."""
        for tier in self._tiers[:-1]:
            if tier.find(chain, tokens, pages) == pages:
                return tier.load(chain, tokens, pages)
        return self._tiers[-1].load(chain, tokens, pages)

    # For anyone

    @property
    def state(self) -> TierState:
        """Whether all read and write, and why not."""
        states = [tier.state for tier in self._tiers]
        return TierState(
            all(state.reading for state in states),
            all(state.writing for state in states),
            "; ".join(state.reason for state in states if state.reason),
        )

    def stats(self) -> TierStats:
        """Counts of all together: what two tiers hold counts twice."""
        sums: Counter[str] = Counter()
        for tier in self._tiers:
            counts = asdict(tier.stats())
            del counts["state"]
            sums.update(counts)
        return TierStats(state=self.state, **sums)

    def refresh(self) -> None:
        """As of KvTier."""
        for tier in self._tiers:
            tier.refresh()

    def flush(self, seconds: float) -> bool:
        """As of KvTier."""
        end = monotonic() + seconds
        done = [tier.flush(max(0.0, end - monotonic())) for tier in self._tiers]
        return all(done)

    def close(self, seconds: float = 10.0) -> bool:
        """As of KvTier."""
        end = monotonic() + seconds
        done = [tier.close(max(0.0, end - monotonic())) for tier in self._tiers]
        return all(done)
