"""A grammar compiler whose time is counted."""

from __future__ import annotations

import time
from threading import Lock
from typing import Any

from kvfold.runtime.server.counts.histogram import Histogram


class TimedCompiler:
    """A GrammarCompiler; several threads may compile at once."""

    def __init__(self, compiler: Any, seconds: Histogram) -> None:
        """Counts into a histogram."""
        self._compiler = compiler
        self._seconds = seconds
        self._lock = Lock()

    def compile(self, spec: Any, reasoning: Any = None) -> Any:
        """A Grammar; raises what GrammarCompiler raises."""
        start = time.perf_counter()
        try:
            return self._compiler.compile(spec, reasoning)
        finally:
            seconds = time.perf_counter() - start
            with self._lock:
                self._seconds.observe(seconds)
