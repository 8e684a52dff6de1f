"""ObjectTier: a KvTier of objects in one place; one thread writes, another reads: no write delays a read."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from kvfold.runtime.memory.tiers.chain import Chain, token_bytes
from kvfold.runtime.memory.tiers.directory_files import DirectoryFiles
from kvfold.runtime.memory.tiers.layout import SEGMENT_PAGES, TierLayout, digest
from kvfold.runtime.memory.tiers.object_file import ObjectName, PageObject
from kvfold.runtime.memory.tiers.object_index import ObjectIndex
from kvfold.runtime.memory.tiers.object_store import HostMemory, ObjectStore
from kvfold.runtime.memory.tiers.prefix import LoadedPrefix, TierLimits, Wanted
from kvfold.runtime.memory.tiers.read_ahead import ReadAhead
from kvfold.runtime.memory.tiers.tier_state import TierHealth, TierState, TierStats
from kvfold.runtime.memory.tiers.write_behind import WriteBehind


class ObjectTier:
    """Prefixes as objects, in one place."""

    def __init__(self, store: ObjectStore, layout: TierLayout, root_key: bytes, limits: TierLimits) -> None:
        """Start its threads; what is in the place is found meanwhile.

        Args:
            store: where the bytes are.
            layout: of the engine's pages.
            root_key: of the engine; see `TierLayout.root_key`.
            limits: how much it may keep.
        """
        self._store = store
        self._layout = layout
        self._root_key = root_key
        self._index = ObjectIndex(layout, by_root=limits.tenant_bytes is not None)
        self._health = TierHealth()
        self._writes = WriteBehind(store, self._index, self._health, layout, limits)
        self._reads = ReadAhead(store, self._index, self._health, layout)

    # For the owner of the pages

    def chain(self, tenant: str) -> Chain:
        """Keys of a new sequence of this tenant; no other tenant's sequence has one of them."""
        return Chain(digest(b"tenant", self._root_key, tenant.encode()), self._layout.page_size)

    def find(self, chain: Chain, tokens: np.ndarray, max_pages: int) -> int:
        """As of KvTier."""
        if not self._health.may_read or self._reads.hangs:
            return 0
        keys = chain.keys(tokens, max_pages // SEGMENT_PAGES)
        masks = self._index.reach(keys)
        for segment in range(len(masks) - 1, -1, -1):
            first = segment * SEGMENT_PAGES
            mask = masks[segment] & (2 << min(SEGMENT_PAGES - 1, max_pages - first)) - 1
            ends = [end for end, key in chain.end_keys(tokens, segment, mask) if self._index.is_there(key)]
            if ends:
                return ends[-1]
            if not self._layout.has_local and self._index.is_there(keys[segment]):
                return first
        return 0

    def wanted(self, chain: Chain, tokens: np.ndarray, pages: int) -> Wanted | None:
        """What to hand over of the first `pages` pages; None if nothing, or if the tier takes none now."""
        if not self._writes.takes_more:
            self._health.count(dropped=1)
            return None
        whole, rest = divmod(pages, SEGMENT_PAGES)
        keys = chain.keys(tokens, whole)
        segments = tuple(at for at in range(whole) if not self._index.holds(keys[at + 1]))
        has_end = bool(rest) or self._layout.has_local
        checkpoint = has_end and not self._index.holds(chain.end_key(tokens, pages))
        return Wanted(pages, segments, checkpoint) if segments or checkpoint else None

    def store(self, chain: Chain, tokens: np.ndarray, wanted: Wanted, rows: Mapping[str, np.ndarray]) -> None:
        """As of KvTier; what it does not lack, which another tier wanted, is left out."""
        items, start = [], 0
        for name in self._names(chain, tokens, wanted):
            end = start + name.global_rows
            mine = {
                group.name: rows[group.name] if group.is_local else rows[group.name][start:end]
                for group in self._layout.groups
                if name.is_checkpoint or not group.is_local
            }
            if not self._index.holds(name.key):
                items.append(PageObject(name, self._tokens_of(name, tokens), mine))
            start = end
        if items and self._writes.takes_more:
            self._writes.put(items)

    def load(self, chain: Chain, tokens: np.ndarray, pages: int) -> Future[LoadedPrefix | None]:
        """As of KvTier; where the index does not know it too: a session that moved here is found at once."""
        whole, rest = divmod(pages, SEGMENT_PAGES)
        names = [self._segment(chain, tokens, at) for at in range(whole)]
        if rest or self._layout.has_local:
            names.append(self._end(chain, tokens, pages))
        return self._reads.load([(name, self._tokens_of(name, tokens)) for name in names], pages)

    # For anyone

    @property
    def state(self) -> TierState:
        """What it does now."""
        return self._health.state

    def stats(self) -> TierStats:
        """Counts, and how full it is."""
        return TierStats(
            state=self._health.state,
            objects=self._index.num_objects,
            bytes=self._index.total_bytes,
            queued_bytes=self._writes.queued_bytes,
            ignored=self._store.ignored,
            **self._health.counts(),
        )

    def refresh(self) -> None:
        """Look soon what other processes wrote; it is done every few seconds too."""
        self._writes.look_around()

    def flush(self, seconds: float) -> bool:
        """Wait until all that was handed over is written or dropped; False where that takes longer."""
        return self._writes.thread.wait(seconds)

    def close(self, seconds: float = 10.0) -> bool:
        """`flush`, then end the threads; nothing may be asked of the tier any more."""
        done = self.flush(seconds)
        self._writes.thread.close()
        self._reads.thread.close()
        return done

    def _names(self, chain: Chain, tokens: np.ndarray, wanted: Wanted) -> list[ObjectName]:
        names = [self._segment(chain, tokens, at) for at in wanted.segments]
        return [*names, self._end(chain, tokens, wanted.pages)] if wanted.checkpoint else names

    def _segment(self, chain: Chain, tokens: np.ndarray, number: int) -> ObjectName:
        keys = chain.keys(tokens, number + 1)
        return ObjectName(chain.root, keys[-1], keys[-2], (number + 1) * SEGMENT_PAGES, False)

    def _end(self, chain: Chain, tokens: np.ndarray, pages: int) -> ObjectName:
        parent = chain.keys(tokens, pages // SEGMENT_PAGES)[-1]
        return ObjectName(chain.root, chain.end_key(tokens, pages), parent, pages, True)

    def _tokens_of(self, name: ObjectName, tokens: np.ndarray) -> bytes:
        size = self._layout.page_size
        return token_bytes(tokens, name.first_page * size, name.pages * size)


class DirectoryTier(ObjectTier):
    """A tier in a directory, which outlives the process and may be shared by processes of one user."""

    def __init__(self, path: Path, layout: TierLayout, root_key: bytes, limits: TierLimits) -> None:
        """Open the directory, which is made if only it is missing.

        Raises:
            TierError: it cannot be made, is none, is another user's, or others may write to it.
        """
        super().__init__(DirectoryFiles(path), layout, root_key, limits)


class HostTier(ObjectTier):
    """A tier in host memory, for engines whose pages are a GPU's."""

    def __init__(self, layout: TierLayout, root_key: bytes, limits: TierLimits) -> None:
        """Empty."""
        super().__init__(HostMemory(), layout, root_key, limits)
