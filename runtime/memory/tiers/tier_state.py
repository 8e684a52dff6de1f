"""How a tier is: whether it reads and writes, and what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from time import monotonic

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


@dataclass(frozen=True)
class TierState:
    """What a tier does now. Without it the server computes what it would have read.

    Attributes:
        reading: objects are looked for.
        writing: objects are written; else it is tried again in a while.
        reason: why not; empty while it does both.
    """

    reading: bool = True
    writing: bool = True
    reason: str = ""


@dataclass(frozen=True)
class TierStats:
    """Counts since the tier was made, and how full it is.

    Attributes:
        state: what it does now.
        objects: segments and checkpoints in it.
        bytes: of these.
        queued_bytes: handed over, not yet written.
        written: objects that were written; `written_bytes` of them.
        dropped: prefixes that were not taken or not written: queue full, tier paused, or too small.
        loaded: prefixes that were read; `loaded_bytes` of them.
        missing: objects that were in the index and not in the tier.
        damaged: objects that were not what was written; each was removed.
        evicted: objects that were given up for others.
        ignored: entries of the directory that are none of this format's.
        errors: calls of the system that failed.
    """

    state: TierState
    objects: int
    bytes: int
    queued_bytes: int
    ignored: int
    written: int = 0
    written_bytes: int = 0
    dropped: int = 0
    loaded: int = 0
    loaded_bytes: int = 0
    missing: int = 0
    damaged: int = 0
    evicted: int = 0
    errors: int = 0


class TierHealth:
    """Counts, and pauses after a failure, each twice as long as the one before; for several threads."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """In good health."""
        self._clock = clock
        self._lock = Lock()
        self._counts: Counter[str] = Counter()
        self._reading_fails = self._writing_fails = ""
        self._pause = FIRST_PAUSE
        self._until = 0.0

    @property
    def state(self) -> TierState:
        """Now."""
        reading, writing = self._reading_fails, self._writing_fails
        return TierState(not reading, not writing, reading or writing)

    @property
    def may_read(self) -> bool:
        """Whether the objects could be listed last time."""
        return not self._reading_fails

    @property
    def may_write(self) -> bool:
        """Whether to try; false in a pause."""
        return self._clock() >= self._until

    def count(self, **counts: int) -> None:
        """Add to counts."""
        with self._lock:
            self._counts.update(counts)

    def counts(self) -> dict[str, int]:
        """So far."""
        with self._lock:
            return dict(self._counts)

    def wrote(self) -> None:
        """Writing works."""
        self._writing_fails, self._pause = "", FIRST_PAUSE

    def write_failed(self, error: Exception) -> None:
        """Writing does not work: pause."""
        self.count(errors=1)
        self._writing_fails = f"cannot write: {_words(error)}"
        self._until = self._clock() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def listed(self) -> None:
        """Listing works."""
        self._reading_fails = ""

    def list_failed(self, error: Exception) -> None:
        """Listing does not work: nothing is looked for until it does."""
        self.count(errors=1)
        self._reading_fails = f"cannot read: {_words(error)}"


def _words(error: Exception) -> str:
    """Of the system's error what it is, without paths."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
