"""TierWatch: a line in the log when a tier stops to read or write, and one when it does both again."""

from __future__ import annotations

import logging

from kvfold.runtime.memory.tiers.tier_state import TierState

LOG = logging.getLogger("kvfold.server")


class TierWatch:
    """Looks at a tier again and again."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._last = TierState()

    def look(self, state: TierState | None) -> None:
        """Tell what changed since the last look; None where there is no tier."""
        if state is None or state == self._last:
            return
        before, self._last = self._last, state
        if not state.reason:
            LOG.info("pages are kept again")
        elif not before.reason:
            LOG.error("pages are computed where they were kept: the tier %s", state.reason)
