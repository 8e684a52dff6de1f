"""What goes into a tier and what comes out: prefixes as plain bytes; and how much it may keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvfold.runtime.memory.tiers.layout import SEGMENT_PAGES


@dataclass(frozen=True)
class TierLimits:
    """Bytes.

    Attributes:
        quota_bytes: of all objects in the place, whoever wrote them.
        tenant_bytes: of one tenant's; None is all.
        queue_bytes: copied pages that wait to be written.
    """

    quota_bytes: int
    tenant_bytes: int | None = None
    queue_bytes: int = 64 << 20


@dataclass(frozen=True)
class Wanted:
    """What a tier lacks of a prefix.

    Attributes:
        pages: length of the prefix.
        segments: numbers of the chain segments that it lacks.
        checkpoint: whether it lacks the end: sinks and tails, and the global pages after the last segment.
    """

    pages: int
    segments: tuple[int, ...]
    checkpoint: bool

    @property
    def global_pages(self) -> np.ndarray:
        """int64, the places of the global pages to hand over, growing."""
        pieces = [np.arange(at * SEGMENT_PAGES, (at + 1) * SEGMENT_PAGES) for at in self.segments]
        if self.checkpoint:
            pieces.append(np.arange(self.pages - self.pages % SEGMENT_PAGES, self.pages))
        return np.concatenate(pieces)


@dataclass(frozen=True)
class LoadedPrefix:
    """Verified pages.

    Attributes:
        pages: length of the prefix.
        rows: by group, uint8 [n, page_bytes]; of a global group pages [0, pages), of a local one those that
            were stored: `horizon.needed(pages)`.
    """

    pages: int
    rows: Mapping[str, np.ndarray]
