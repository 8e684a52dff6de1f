"""A grammar compiler whose time is counted."""

from __future__ import annotations

import time
from typing import Any

from kvfold.runtime.server.counts.histogram import Histogram


class TimedCompiler:
    """A GrammarCompiler."""

    def __init__(self, compiler: Any, seconds: Histogram) -> None:
        """Counts into a histogram."""
        self._compiler = compiler
        self._seconds = seconds

    def compile(self, spec: Any) -> Any:
        """A Grammar; raises what GrammarCompiler raises."""
        start = time.perf_counter()
        try:
            return self._compiler.compile(spec)
        finally:
            self._seconds.observe(time.perf_counter() - start)
