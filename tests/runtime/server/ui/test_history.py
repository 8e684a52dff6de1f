"""Percentiles and rates of the last minutes, from counts that are there anyway."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from kvfold.runtime.metrics import CacheMetrics, Metrics
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.server.counts import history
from kvfold.runtime.server.counts.histogram import Histogram, quantile
from kvfold.runtime.server.counts.history import History
from kvfold.runtime.server.counts.recent_replies import KEPT, RecentReplies
from kvfold.runtime.server.counts.reply_metrics import ReplyMetrics
from tests.runtime.server.puppet_llm import IDLE, POOLS, PuppetLLM


class Clock:
    """Time that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_quantile_is_interpolated_within_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    assert quantile(histogram.bounds, histogram.counts, 0.5) is None
    for value in (0.5, 1.5, 1.6, 3.0):
        histogram.observe(value)
    assert quantile(histogram.bounds, histogram.counts, 0.25) == 1.0
    assert quantile(histogram.bounds, histogram.counts, 0.5) == 1.5
    assert quantile(histogram.bounds, histogram.counts, 1.0) == 4.0
    histogram.observe(100.0, times=100)
    assert quantile(histogram.bounds, histogram.counts, 0.99) == 4.0, "above the last bound it is that"


def test_what_is_old_does_not_count_for_the_last_minute(clock: Clock) -> None:
    metrics = ReplyMetrics()
    kept = History(metrics)
    metrics.began(2.0, 10)
    for _ in range(24):
        clock.now += 5
        kept.look(IDLE)
    metrics.began(0.03, 10)
    assert kept.speed(60, IDLE).first_token.values == 1
    assert kept.speed(300, IDLE).first_token.values == 2
    assert kept.speed(60, IDLE).seconds == 60
    assert kept.speed(300, IDLE).seconds == 120, "the server is younger than five minutes"
    p50 = kept.speed(60, IDLE).first_token.p50
    assert p50 is not None and 0.02 < p50 < 0.04


def test_a_point_is_what_happened_between_two_samples(clock: Clock) -> None:
    metrics = ReplyMetrics()
    kept = History(metrics)
    clock.now += 4
    kept.look(IDLE)
    assert kept.after(0) == []
    clock.now += 2
    metrics.reply_tokens = 60
    metrics.gap(0.01, 1)
    cache = Metrics(CacheMetrics(queried_tokens=100, hit_tokens=40), POOLS, 400, 0)
    kept.look(replace(IDLE, steps=20, running=3, metrics=cache))
    (point,) = kept.after(0)
    assert (point.at, point.seconds, point.steps, point.reply_tokens) == (1006.0, 6.0, 20, 60)
    assert (point.computed_tokens, point.hit_tokens, point.running) == (60, 40, 3)
    assert point.first_token_p50 is None and point.between_tokens_p50 is not None
    assert kept.after(point.at) == []


def test_a_hit_saves_what_prefill_took_when_it_came(clock: Clock) -> None:
    kept = History(ReplyMetrics())
    for rate, hits, saved in ((100.0, 200, 2.0), (400.0, 600, 3.0), (0.0, 600, 3.0)):
        clock.now += 5
        cache = Metrics(CacheMetrics(queried_tokens=2000, hit_tokens=hits), POOLS, 400, 0)
        snapshot = replace(IDLE, prefill_rate=rate, metrics=cache)
        assert kept.saved_seconds(snapshot) == saved
        kept.look(snapshot)
        assert kept.saved_seconds(snapshot) == saved


def test_an_hour_is_kept_and_no_more(clock: Clock) -> None:
    kept = History(ReplyMetrics())
    for _ in range(2000):
        clock.now += history.SAMPLE_SECONDS
        kept.look(None)
    assert len(kept.after(0)) == history.KEPT_SECONDS / history.SAMPLE_SECONDS + 1
    assert kept.speed(2 * history.KEPT_SECONDS, None).seconds == history.KEPT_SECONDS


def test_a_reply_that_ended_is_remembered_for_a_while() -> None:
    usage = PuppetLLM().reply(0, Prompt(np.arange(5))).usage()
    recent = RecentReplies()
    for number in range(KEPT + 10):
        recent.add(number, "t", "stop", 1.0, usage)
    assert [each.id for each in recent.after(0)] == list(range(10, KEPT + 10))
    assert [each.id for each in recent.after(KEPT + 9)] == [KEPT + 9]
