"""What a server did in the last hour: cumulated counts every few seconds, whose differences are rates.

Nothing is counted twice: percentiles come from differences of the histograms that `/metrics` shows.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from kvfold.runtime.loop.snapshot import LoopSnapshot
from kvfold.runtime.metrics import CacheMetrics
from kvfold.runtime.server.counts.histogram import Histogram, quantile
from kvfold.runtime.server.counts.reply_metrics import ReplyMetrics

SAMPLE_SECONDS = 5.0
KEPT_SECONDS = 3600.0
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Sample(NamedTuple):
    """Counts since the server's start, at a moment."""

    clock: float
    steps: int
    computed_tokens: int
    reply_tokens: int
    queried_tokens: int
    hit_tokens: int
    first_token: Sequence[int]
    between_tokens: Sequence[int]


class Point(NamedTuple):
    """What happened between two samples; times in seconds.

    Attributes:
        at: end, seconds since the epoch.
        seconds: how long it was.
        steps: of the engine.
        computed_tokens: of prompts, beyond what the cache had.
        reply_tokens: generated.
        queried_tokens: of prompts that were let in.
        hit_tokens: of these, from the cache.
        running: requests in steps at its end.
        waiting: requests that wait at its end.
        first_token_p50: seconds to the first token; None: there was none.
        first_token_p95: the same.
        between_tokens_p50: seconds from a token to the next.
        between_tokens_p95: the same.
    """

    at: float
    seconds: float
    steps: int
    computed_tokens: int
    reply_tokens: int
    queried_tokens: int
    hit_tokens: int
    running: int
    waiting: int
    first_token_p50: float | None
    first_token_p95: float | None
    between_tokens_p50: float | None
    between_tokens_p95: float | None


class Percentiles(NamedTuple):
    """Of a histogram's values; None where it had none."""

    values: int
    p50: float | None
    p95: float | None
    p99: float | None


class Speed(NamedTuple):
    """How fast a server was.

    Attributes:
        seconds: over how long; less than was asked for where the server is younger.
        first_token: seconds from a request's first byte to the first token.
        between_tokens: seconds from a token to the next.
        prefill_rate: prompt tokens computed a second, pauses counted.
        reply_rate: tokens generated a second, pauses counted.
        batch: tokens generated a step; None without steps.
    """

    seconds: float
    first_token: Percentiles
    between_tokens: Percentiles
    prefill_rate: float
    reply_rate: float
    batch: float | None


class History:
    """Samples of the last hour, and the points between them."""

    def __init__(self, metrics: ReplyMetrics) -> None:
        """Over what is counted anyway."""
        self._metrics = metrics
        kept = int(KEPT_SECONDS / SAMPLE_SECONDS) + 1
        self._samples: deque[Sample] = deque([self._sample(None)], maxlen=kept)
        self._points: deque[Point] = deque(maxlen=kept)
        self._saved_seconds = 0.0

    def look(self, snapshot: LoopSnapshot | None) -> None:
        """Take a sample if the last one is old enough; to be called more often than that."""
        before = self._samples[-1]
        if time.monotonic() - before.clock < SAMPLE_SECONDS:
            return
        self._saved_seconds += self._saved_since(before, snapshot)
        now = self._sample(snapshot)
        self._samples.append(now)
        first, between = self._metrics.first_token, self._metrics.between_tokens
        first_counts, between_counts = _since(before, now)
        self._points.append(
            Point(
                at=time.time(),
                seconds=now.clock - before.clock,
                steps=now.steps - before.steps,
                computed_tokens=now.computed_tokens - before.computed_tokens,
                reply_tokens=now.reply_tokens - before.reply_tokens,
                queried_tokens=now.queried_tokens - before.queried_tokens,
                hit_tokens=now.hit_tokens - before.hit_tokens,
                running=0 if snapshot is None else snapshot.running,
                waiting=0 if snapshot is None else snapshot.waiting,
                first_token_p50=quantile(first.bounds, first_counts, 0.5),
                first_token_p95=quantile(first.bounds, first_counts, 0.95),
                between_tokens_p50=quantile(between.bounds, between_counts, 0.5),
                between_tokens_p95=quantile(between.bounds, between_counts, 0.95),
            )
        )

    def saved_seconds(self, snapshot: LoopSnapshot) -> float:
        """Of prefill that hits made unnecessary, at the rate that was measured when they came."""
        return self._saved_seconds + self._saved_since(self._samples[-1], snapshot)

    def after(self, at: float) -> list[Point]:
        """Points that ended after a time, seconds since the epoch."""
        return [point for point in self._points if point.at > at]

    def speed(self, seconds: float, snapshot: LoopSnapshot | None) -> Speed:
        """How fast the server was in the last `seconds`."""
        now = self._sample(snapshot)
        before = self._samples[0]
        for sample in reversed(self._samples):
            before = sample
            if now.clock - sample.clock >= seconds:
                break
        span = max(now.clock - before.clock, 1e-9)
        steps = now.steps - before.steps
        first_counts, between_counts = _since(before, now)
        return Speed(
            span,
            _percentiles(self._metrics.first_token, first_counts),
            _percentiles(self._metrics.between_tokens, between_counts),
            (now.computed_tokens - before.computed_tokens) / span,
            (now.reply_tokens - before.reply_tokens) / span,
            (now.reply_tokens - before.reply_tokens) / steps if steps else None,
        )

    def _saved_since(self, before: Sample, snapshot: LoopSnapshot | None) -> float:
        if snapshot is None or not snapshot.prefill_rate:
            return 0.0
        return (snapshot.metrics.cache.hit_tokens - before.hit_tokens) / snapshot.prefill_rate

    def _sample(self, snapshot: LoopSnapshot | None) -> Sample:
        cache = CacheMetrics() if snapshot is None else snapshot.metrics.cache
        metrics = self._metrics
        return Sample(
            clock=time.monotonic(),
            steps=0 if snapshot is None else snapshot.steps,
            computed_tokens=cache.queried_tokens - cache.hit_tokens,
            reply_tokens=metrics.reply_tokens,
            queried_tokens=cache.queried_tokens,
            hit_tokens=cache.hit_tokens,
            first_token=array("Q", metrics.first_token.counts),
            between_tokens=array("Q", metrics.between_tokens.counts),
        )


def _since(before: Sample, now: Sample) -> tuple[list[int], list[int]]:
    first = [b - a for a, b in zip(before.first_token, now.first_token, strict=True)]
    between = [b - a for a, b in zip(before.between_tokens, now.between_tokens, strict=True)]
    return first, between


def _percentiles(histogram: Histogram, counts: Sequence[int]) -> Percentiles:
    found = {name: quantile(histogram.bounds, counts, share) for name, share in SHARES.items()}
    return Percentiles(sum(counts), **found)
