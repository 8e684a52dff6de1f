"""TierLink: brings prefixes of sequences from the pools into a tier, and back."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic

import numpy as np

from kvfold.runtime.engine.protocol import PageStore
from kvfold.runtime.memory.horizon import Horizon
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.memory.tiers.prefix import LoadedPrefix

# A request does not wait longer for pages from a tier: a disk that hangs must not stop it.
MOST_SECONDS = 1.0


@dataclass(frozen=True)
class Load:
    """A prefix on its way from a tier.

    Attributes:
        tokens: int64, of the sequence that waits for it.
        tenant: whose.
        until: clock, as of `time.monotonic`, when it is not waited for any more.
        future: its bytes, or None where they are not whole.
    """

    tokens: np.ndarray
    tenant: str
    until: float
    future: Future[LoadedPrefix | None]

    @property
    def ended(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.future.done() or monotonic() >= self.until

    @property
    def prefix(self) -> LoadedPrefix | None:
        """What came; None where nothing did, or not in time."""
        if not self.future.done():
            self.future.cancel()
            return None
        return self.future.result()


class TierLink:
    """A tier as the owner of the pages uses it; nothing here waits."""

    def __init__(
        self, tier: KvTier, horizons: Sequence[Horizon], page_bytes: Sequence[int], store: PageStore
    ) -> None:
        """Between a tier and the pages of an engine."""
        self.tier = tier
        self._horizons = horizons
        self._page_bytes = page_bytes
        self._store = store

    def write(self, sequence: PagedSequence, pages: int) -> None:
        """Hand over the first `pages` pages of a sequence, whose end is a checkpoint, as far as they lack."""
        if sequence.chain is None:
            sequence.chain = self.tier.chain(sequence.tenant)
        wanted = self.tier.wanted(sequence.chain, sequence.tokens, pages)
        if wanted is None:
            return
        rows = {}
        for law in self._horizons:
            if law.is_local and not wanted.checkpoint:
                continue
            places = law.needed(pages) if law.is_local else wanted.global_pages
            mine = sequence.tables[law.index, places]
            rows[law.name] = np.empty((len(mine), self._page_bytes[law.index]), np.uint8)
            self._store.copy_out(law.name, mine, rows[law.name])
        self.tier.store(sequence.chain, sequence.tokens, wanted, rows)

    def load(self, tokens: np.ndarray, max_pages: int, least: int, tenant: str) -> Load | None:
        """Begin to read the longest prefix of a tier; None where it has no more than `least` pages."""
        chain = self.tier.chain(tenant)
        pages = self.tier.find(chain, tokens, max_pages)
        if pages <= least:
            return None
        return Load(tokens, tenant, monotonic() + MOST_SECONDS, self.tier.load(chain, tokens, pages))

    def copy_in(self, prefix: LoadedPrefix, sequence: PagedSequence, have: int) -> None:
        """Fill the pages that a sequence has mapped for a prefix; global ones from `have` on."""
        for law in self._horizons:
            rows = prefix.rows[law.name]
            if law.is_local:
                pages = sequence.tables[law.index, law.needed(prefix.pages)]
            else:
                pages, rows = sequence.tables[law.index, have : prefix.pages], rows[have:]
            self._store.copy_in(law.name, pages, rows)
