"""WriteBehind: the thread that writes what was handed over, evicts, and learns what other processes wrote."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import Lock
from time import monotonic, sleep, time

from kvfold.runtime.memory.tiers.background import Background
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.object_file import PageObject, encode
from kvfold.runtime.memory.tiers.object_index import ObjectIndex
from kvfold.runtime.memory.tiers.object_store import Listing, ObjectStore, TakenPlaceError
from kvfold.runtime.memory.tiers.prefix import TierLimits
from kvfold.runtime.memory.tiers.tier_state import TierHealth

LIST_SECONDS = 5.0
# Listing takes at most this part of the thread's time.
LIST_SHARE = 0.05


class WriteBehind:
    """A bounded queue, and who empties it.

    Attributes:
        queued_bytes: pages that wait.
        thread: does the work.
    """

    def __init__(
        self,
        store: ObjectStore,
        index: ObjectIndex,
        health: TierHealth,
        layout: TierLayout,
        limits: TierLimits,
    ) -> None:
        """Start the thread; it lists the store before it writes."""
        self.queued_bytes = 0
        self._lock = Lock()
        self._store = store
        self._index = index
        self._health = health
        self._layout = layout
        self._limits = limits
        self.thread = Background("kvfold tier writer", self._look_around, gives_way=True)

    @property
    def takes_more(self) -> bool:
        """Whether it tries to write, and the queue has room for something."""
        return self._health.may_write and self.queued_bytes < self._limits.queue_bytes

    def put(self, items: Sequence[PageObject]) -> None:
        """Write these in a while: all of them, or as many as go before a failure; in this order."""
        size = sum(rows.nbytes for item in items for rows in item.rows.values())
        with self._lock:
            full = self.queued_bytes + size > self._limits.queue_bytes
            self.queued_bytes += 0 if full else size
        if full:
            self._health.count(dropped=1)
            return
        self._index.promise(item.name for item in items)
        self.thread.do(partial(self._write, items, size))

    def look_around(self) -> None:
        """List the store now, and not only every few seconds."""
        self.thread.do(self._look_around)

    # In its thread

    def _look_around(self) -> float:
        """Learn what others wrote and took away. Returns the seconds until the next time."""
        started = monotonic()
        try:
            for listing in self._store.listings(self._index.is_there):
                self._learn(listing)
            self._health.listed()
        except Exception as error:  # the thread goes on; the state says what went wrong
            self._health.list_failed(error)
        return max(LIST_SECONDS, (monotonic() - started) / LIST_SHARE)

    def _learn(self, listing: Listing) -> None:
        for name, size, used in listing.found:
            self._index.add(name, size, used)
            sleep(0)  # let a thread go on that waits for Python
        for key in self._index.others(listing.shard, listing.keys):
            self._index.forget(key)

    def _write(self, items: Sequence[PageObject], queued: int) -> None:
        try:
            if self._health.may_write and self._write_all(items):
                self._health.wrote()
            else:
                self._health.count(dropped=1)
        except TakenPlaceError:
            self._health.count(errors=1, dropped=1)
        except Exception as error:  # the thread goes on; the state says what went wrong
            self._health.write_failed(error)
            self._health.count(dropped=1)
        finally:
            for item in items:
                self._index.forget(item.name.key, promised=True)
            with self._lock:
                self.queued_bytes -= queued

    def _write_all(self, items: Sequence[PageObject]) -> bool:
        """Write objects that belong together; False where there can be no room."""
        encoded = [encode(item, self._layout) for item in items]
        if not self._make_room(items[0].name.root, sum(len(part) for parts in encoded for part in parts)):
            return False
        for item, parts in zip(items, encoded, strict=True):
            length = self._store.write(item.name, parts)
            self._index.add(item.name, length, time())
            self._health.count(written=1, written_bytes=length)
        return True

    def _make_room(self, root: bytes, size: int) -> bool:
        mine = self._limits.tenant_bytes
        return (mine is None or self._evict(root, mine - size)) and self._evict(
            None, self._limits.quota_bytes - size
        )

    def _evict(self, root: bytes | None, most: int) -> bool:
        """Give up objects, of one tenant or of all, until they are at most this many bytes."""
        if most < 0:
            return False
        while (self._index.total_bytes if root is None else self._index.root_bytes(root)) > most:
            victim = self._index.victim(root)
            if victim is None:
                return False
            if self._index.touch(victim.key, self._store.used(victim)):
                continue  # another process used it
            self._store.unlink(victim)
            self._index.forget(victim.key)
            self._health.count(evicted=1)
        return True
