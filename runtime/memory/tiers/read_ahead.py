"""ReadAhead: the thread that reads a prefix, and verifies every byte of it before it gives it away."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from time import monotonic, time

import numpy as np

from kvfold.runtime.memory.tiers.background import Background
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.object_file import ObjectName, decode, size_limit
from kvfold.runtime.memory.tiers.object_index import ObjectIndex
from kvfold.runtime.memory.tiers.object_store import ObjectStore
from kvfold.runtime.memory.tiers.prefix import LoadedPrefix
from kvfold.runtime.memory.tiers.tier_state import TierHealth

# Who waits for a prefix has gone by then: a disk that hangs is asked no more until it has answered.
HANG_SECONDS = 1.0
# Objects along a prefix, each with the tokens that it must hold.
Pieces = Sequence[tuple[ObjectName, bytes]]
Rows = dict[str, np.ndarray]


class ReadAhead:
    """Reads one prefix after another.

    Attributes:
        thread: does the work.
    """

    def __init__(
        self, store: ObjectStore, index: ObjectIndex, health: TierHealth, layout: TierLayout
    ) -> None:
        """Start the thread."""
        self._store = store
        self._index = index
        self._health = health
        self._layout = layout
        self._began: float | None = None
        self.thread = Background("kvfold tier reader")

    @property
    def hangs(self) -> bool:
        """Whether one prefix has taken too long so far."""
        began = self._began
        return began is not None and monotonic() - began > HANG_SECONDS

    def load(self, pieces: Pieces, pages: int) -> Future[LoadedPrefix | None]:
        """Read the objects of a prefix of `pages` pages."""
        future: Future[LoadedPrefix | None] = Future()
        self.thread.do(partial(self._load, pieces, pages, future))
        return future

    # In its thread

    def _load(self, pieces: Pieces, pages: int, future: Future[LoadedPrefix | None]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        loaded = None
        self._began = monotonic()
        try:
            found = self._read_all(pieces)
            if found is not None:
                loaded = LoadedPrefix(pages, self._join(found))
        except Exception:  # nobody may wait for ever; what went wrong is counted
            self._health.count(errors=1)
        self._began = None
        future.set_result(loaded)

    def _read_all(self, pieces: Pieces) -> list[Rows] | None:
        """Rows of each object; None as soon as one is missing or damaged."""
        found: list[Rows] = []
        sizes = []
        for name, tokens in pieces:
            data = self._store.read(name, size_limit(name, self._layout))
            if data is None:
                self._index.forget(name.key)
                self._health.count(missing=1)
                return None
            rows = decode(data, name, tokens, self._layout)
            if rows is None:
                self._index.forget(name.key)
                self._health.count(damaged=1)
                self._store.unlink(name)
                return None
            found.append(rows)
            sizes.append(len(data))
        for (name, _), size in zip(pieces, sizes, strict=True):
            self._index.add(name, size, time())
        self._health.count(loaded=1, loaded_bytes=sum(sizes))
        return found

    def _join(self, found: Sequence[Rows]) -> Rows:
        joined = {}
        for group in self._layout.groups:
            parts = [rows[group.name] for rows in found if len(rows[group.name])]
            nothing = np.empty((0, group.page_bytes), np.uint8)
            joined[group.name] = parts[0] if len(parts) == 1 else np.concatenate([nothing, *parts])
        return joined
