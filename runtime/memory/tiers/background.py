"""Background: a thread that does one thing after another, and something of its own in between."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread, get_native_id
from time import monotonic

# Added to the niceness of a thread that gives way: it takes little of a core that others want too.
NICE = 19


class Background:
    """Its thread dies with the process, whatever it is at. Work must not raise."""

    def __init__(self, name: str, chore: Callable[[], float] | None = None, gives_way: bool = False) -> None:
        """Start.

        Args:
            name: of the thread.
            chore: done at once and again whenever the seconds it returned are over.
            gives_way: nobody waits for its work: on Linux, other threads come first.
        """
        self._gives_way = gives_way
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._chore = chore
        self._closed = False
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], object]) -> None:
        """Do this after all that was asked for before."""
        self._work.put(work)

    def wait(self, seconds: float) -> bool:
        """Wait for all that was asked for until now; False where that takes longer, or it was closed."""
        if self._closed:
            return False
        done = Event()
        self._work.put(done.set)
        return done.wait(seconds)

    def close(self) -> None:
        """End after what was asked for; does not wait."""
        self._closed = True
        self._work.put(None)

    def _run(self) -> None:
        if self._gives_way and sys.platform == "linux":  # elsewhere a thread has no niceness of its own
            thread = get_native_id()
            with suppress(OSError):  # a sandbox may forbid it, and the work goes on all the same
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICE)
        due = monotonic() if self._chore else None
        while True:
            if self._chore is not None and due is not None and monotonic() >= due:
                due = monotonic() + self._chore()
            try:
                work = self._work.get(timeout=None if due is None else max(0.0, due - monotonic()))
            except Empty:
                continue
            if work is None:
                return
            work()
