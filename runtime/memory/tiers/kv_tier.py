"""KvTier: prefixes of conversations below the pool, as plain bytes; it knows of no engine and no scheduler.

The owner of the pages asks and hands over: that takes microseconds, waits for no I/O and raises nothing. One
thread writes, another reads, so that no write delays a read.
"""

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


class KvTier:
    """A place for prefixes. Only `flush` and `close` wait."""

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

    def find(self, chain: Chain, tokens: np.ndarray, max_pages: int, have: int = 0) -> int:
        """Pages of the longest prefix that can be loaded; 0 is none.

        Args:
            chain: of the sequence.
            tokens: of the sequence, at least `max_pages` pages of them.
            max_pages: the longest that is of use.
            have: global pages from the start that need not be here.
        """
        if not self._health.may_read:
            return 0
        keys = chain.keys(tokens, max_pages // SEGMENT_PAGES)
        masks = self._index.reach(keys, have // SEGMENT_PAGES)
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
        """Hand over copied pages, which nobody changes any more; they are written in a while, or dropped.

        Args:
            chain: of the sequence.
            tokens: of the sequence.
            wanted: as the tier said.
            rows: by group, uint8 [n, page_bytes]: of a global group `wanted.global_pages`; of a local one,
                where the checkpoint is wanted, `horizon.needed(wanted.pages)`.
        """
        items, start = [], 0
        for name in self._names(chain, tokens, wanted):
            end = start + name.global_rows
            mine = {
                group.name: rows[group.name] if group.is_local else rows[group.name][start:end]
                for group in self._layout.groups
                if name.is_checkpoint or not group.is_local
            }
            items.append(PageObject(name, self._tokens_of(name, tokens), mine))
            start = end
        self._writes.put(items)

    def load(
        self, chain: Chain, tokens: np.ndarray, pages: int, have: int = 0
    ) -> Future[LoadedPrefix | None]:
        """Read a prefix in the reader's thread: verified whole, or None.

        It is read where the index does not know it too, so a session that moved here is found at once.

        Args:
            chain: of the sequence.
            tokens: of the sequence.
            pages: what `find` said, or what a session's journal says.
            have: as of `find`.
        """
        whole, rest = divmod(pages, SEGMENT_PAGES)
        names = [self._segment(chain, tokens, at) for at in range(have // SEGMENT_PAGES, whole)]
        if rest or self._layout.has_local:
            names.append(self._end(chain, tokens, pages))
        return self._reads.load([(name, self._tokens_of(name, tokens)) for name in names], pages, have)

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


class DirectoryTier(KvTier):
    """A tier in a directory, which outlives the process and may be shared by processes of one user."""

    def __init__(self, path: Path, layout: TierLayout, root_key: bytes, limits: TierLimits) -> None:
        """Open the directory, which is made if only it is missing.

        Raises:
            TierError: it cannot be made, is none, is another user's, or others may write to it.
        """
        super().__init__(DirectoryFiles(path), layout, root_key, limits)


class HostTier(KvTier):
    """A tier in host memory, for engines whose pages are a GPU's."""

    def __init__(self, layout: TierLayout, root_key: bytes, limits: TierLimits) -> None:
        """Empty."""
        super().__init__(HostMemory(), layout, root_key, limits)
