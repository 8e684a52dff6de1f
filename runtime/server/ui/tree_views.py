"""The tree as values for JSON: copied at most once a second, and only while somebody asks for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from kvfold.runtime.memory.tree_copy import Box, TreeCopy
from kvfold.runtime.server.served_llm import ServedLLM

LEAST_SECONDS = 0.9


@dataclass
class Look:
    """The last look at one tenant's tree, or at all of it.

    Attributes:
        copying: the copy that was asked for.
        asked: clock of that, as of `time.monotonic`.
        values: of the last copy that came; None before the first.
    """

    copying: asyncio.Future[TreeCopy]
    asked: float
    values: dict[str, Any] | None = None


class TreeViews:
    """The last copy for each that looks: several watchers of one tree cost one."""

    def __init__(self) -> None:
        """Nobody has looked yet."""
        self._looks: dict[str | None, Look] = {}

    def latest(self, llm: ServedLLM, tenant: str | None) -> dict[str, Any] | None:
        """The last copy, which may be old where the engine hangs; asks for the next one."""
        return self._look(llm, tenant).values

    async def next(self, llm: ServedLLM, tenant: str | None) -> dict[str, Any]:
        """A copy of now, or of less than a second ago; an engine that hangs never gives it."""
        look = self._look(llm, tenant)
        await asyncio.shield(look.copying)
        while look.values is None:  # its callback runs in this very turn of the loop
            await asyncio.sleep(0)
        return look.values

    def _look(self, llm: ServedLLM, tenant: str | None) -> Look:
        now = time.monotonic()
        look = self._looks.get(tenant)
        if look is not None and (not look.copying.done() or now - look.asked < LEAST_SECONDS):
            return look
        copying = llm.copy_tree(tenant)
        look = self._looks.setdefault(tenant, Look(copying, now))
        look.copying, look.asked = copying, now
        copying.add_done_callback(lambda done: self._keep(look, llm, tenant, done))
        return look

    def _keep(self, look: Look, llm: ServedLLM, tenant: str | None, copied: asyncio.Future[TreeCopy]) -> None:
        if copied.cancelled():
            return
        copy = copied.result()
        if look.values is None or look.values["clock"] != copy.clock:
            look.values = tree_values(copy, llm, tenant)


def tree_values(copy: TreeCopy, llm: ServedLLM, tenant: str | None) -> dict[str, Any]:
    """A copy as it is sent; the size of the whole tree is for those who see all of it."""
    return {
        "clock": copy.clock,
        "pages": copy.size if tenant is None else None,
        "shown_pages": copy.copied,
        "page_size": llm.page_size,
        "groups": [{"group": name, "page_bytes": size} for name, size in llm.page_bytes.items()],
        "fields": Box._fields,
        "boxes": list(copy.boxes(llm.page_size)),
    }
