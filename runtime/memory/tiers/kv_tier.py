"""KvTier: prefixes of conversations below the pool, as plain bytes; it knows of no engine and no scheduler.

The owner of the pages asks and hands over: that takes microseconds, waits for no I/O and raises nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from kvfold.runtime.memory.tiers.chain import Chain
from kvfold.runtime.memory.tiers.prefix import LoadedPrefix, Wanted
from kvfold.runtime.memory.tiers.tier_state import TierState, TierStats


class KvTier(Protocol):
    """A place for prefixes, or several. Only `flush` and `close` wait."""

    # For the owner of the pages

    def chain(self, tenant: str) -> Chain:
        """Keys of a new sequence of this tenant; no other tenant's sequence has one of them."""
        ...

    def find(self, chain: Chain, tokens: np.ndarray, max_pages: int) -> int:
        """Pages of the longest prefix that can be loaded; 0 is none.

        Args:
            chain: of the sequence.
            tokens: of the sequence, at least `max_pages` pages of them.
            max_pages: the longest that is of use.
        """
        ...

    def wanted(self, chain: Chain, tokens: np.ndarray, pages: int) -> Wanted | None:
        """What to hand over of the first `pages` pages; None if nothing, or if the tier takes none now."""
        ...

    def store(self, chain: Chain, tokens: np.ndarray, wanted: Wanted, rows: Mapping[str, np.ndarray]) -> None:
        """Hand over copied pages, which nobody changes any more; they are written in a while, or dropped.

        Args:
            chain: of the sequence.
            tokens: of the sequence.
            wanted: as the tier said, just now.
            rows: by group, uint8 [n, page_bytes]: of a global group `wanted.global_pages`; of a local one,
                where the checkpoint is wanted, `horizon.needed(wanted.pages)`.
        """
        ...

    def load(self, chain: Chain, tokens: np.ndarray, pages: int) -> Future[LoadedPrefix | None]:
        """Read a prefix in a thread of the tier's: verified whole, or None.

        Args:
            chain: of the sequence.
            tokens: of the sequence.
            pages: what `find` said.
        """
        ...

    # For anyone

    @property
    def state(self) -> TierState:
        """What it does now."""
        ...

    def stats(self) -> TierStats:
        """Counts, and how full it is."""
        ...

    def refresh(self) -> None:
        """Look soon what other processes wrote; it is done every few seconds too."""
        ...

    def flush(self, seconds: float) -> bool:
        """Wait until all that was handed over is written or dropped; False where that takes longer."""
        ...

    def close(self, seconds: float = 10.0) -> bool:
        """`flush`, then end the threads; nothing may be asked of the tier any more."""
        ...
