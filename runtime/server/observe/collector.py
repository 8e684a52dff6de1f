"""Prometheus' view of a server: families are made when somebody scrapes, and cost nothing between.

What other servers measure too has their names: each such family comes as `kvfold:NAME` and as `vllm:NAME`,
with vLLM's labels, since gateways and dashboards look for those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kvfold.runtime.memory.tiers.tier_state import TierStats
from kvfold.runtime.metrics import Metrics
from kvfold.runtime.server.counts.histogram import Histogram
from kvfold.runtime.server.state import ServerState

# vLLM calls a reply that was cancelled so.
VLLM_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort", "error": "error"}
TIER_EVENTS = ("written", "dropped", "loaded", "missing", "damaged", "evicted", "errors")
Labels = Mapping[str, str]


class ServerCollector(Collector):
    """Families of one server."""

    def __init__(self, state: ServerState) -> None:
        """Reads the state of this server."""
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """All families, from counters and the loop's last snapshot."""
        yield from self._shared("kvfold:")
        yield from self._shared("vllm:")
        yield from self._own()

    def _shared(self, prefix: str) -> Iterator[Metric]:
        state, metrics = self._state, self._state.metrics
        labels = {"model_name": state.model_name, "engine": "0"}

        def counter(name: str, text: str, value: float) -> Metric:
            return _counter(prefix + name, text, [(labels, value)])

        for name, text, histogram in (
            (
                "time_to_first_token_seconds",
                "From a request's first byte to a reply's first token.",
                metrics.first_token,
            ),
            ("inter_token_latency_seconds", "From a token to the next.", metrics.between_tokens),
            ("e2e_request_latency_seconds", "From a request's first byte to a reply's end.", metrics.whole),
            ("request_queue_time_seconds", "From submission to the first step.", metrics.queued),
        ):
            yield _histogram(prefix + name, text, labels, histogram)
        yield counter("prompt_tokens", "Prompt tokens of replies that began.", metrics.prompt_tokens)
        yield counter("generation_tokens", "Tokens generated.", metrics.reply_tokens)
        yield _counter(
            prefix + "request_success",
            "Replies that ended, by reason.",
            [({**labels, "finished_reason": VLLM_REASONS[reason]}, n) for reason, n in metrics.ends.items()],
        )
        if (llm := state.loaded_llm) is None:
            return
        snapshot = llm.snapshot()
        cache = snapshot.metrics.cache
        yield counter("prefix_cache_queries", "Prompt tokens looked up.", cache.queried_tokens)
        yield counter("prefix_cache_hits", "Prompt tokens that were there.", cache.hit_tokens)
        yield counter(
            "num_preemptions", "Requests that gave up their pages to an older one.", cache.preemptions
        )
        yield _gauge(prefix + "num_requests_running", "Requests in steps.", [(labels, snapshot.running)])
        yield _gauge(
            prefix + "num_requests_waiting", "Requests that wait for steps.", [(labels, snapshot.waiting)]
        )
        budget = snapshot.metrics.kv_cache_bytes
        yield _gauge(
            prefix + "kv_cache_usage_perc",
            "Bytes of pages in use, of all that there are: 0 to 1.",
            [(labels, snapshot.metrics.used_bytes / budget)],
        )
        blocks = budget // sum(pool.page_bytes for pool in snapshot.metrics.pools.values())
        shape = {"block_size": str(llm.page_size), "num_gpu_blocks": str(blocks), "engine": "0"}
        yield _gauge(
            prefix + "cache_config_info", "Tokens of a page; pages that all groups can have.", [(shape, 1)]
        )

    def _own(self) -> Iterator[Metric]:
        state, metrics = self._state, self._state.metrics
        yield _counter(
            "kvfold:request_cancelled",
            "Replies that were cancelled, by whom.",
            [({"reason": reason}, n) for reason, n in metrics.cancelled.items()],
        )
        yield _counter(
            "kvfold:requests_refused",
            "Requests that were not let in.",
            [({"reason": reason}, n) for reason, n in metrics.refusals.items()],
        )
        yield _counter(
            "kvfold:session_files",
            "Files of sessions and stored responses, by what happened to them.",
            [({"event": event}, n) for event, n in metrics.files.items()],
        )
        yield _histogram(
            "kvfold:grammar_compile_seconds", "Of a schema, regex or grammar.", {}, metrics.grammar_compile
        )
        yield _gauge(
            "kvfold:stream_backlog_characters",
            "Text that clients did not take yet.",
            [({}, state.sweep.unread())],
        )
        yield _gauge("kvfold:ready", "1 while requests are taken.", [({}, state.why_not_ready() is None)])
        yield _gauge(
            "kvfold:step_age_seconds", "Since the last step while there is work.", [({}, state.step_age())]
        )
        if (llm := state.loaded_llm) is not None:
            yield from _cache_families(llm.snapshot().metrics)
            if (tier := llm.tier_stats) is not None:
                yield from _tier_families(tier)


def _cache_families(metrics: Metrics) -> Iterator[Metric]:
    cache = metrics.cache
    yield _gauge(
        "kvfold:pool_pages",
        "Pages of a horizon group: idle in the tree, or used.",
        [
            ({"group": group, "state": state}, pages)
            for group, pool in metrics.pools.items()
            for state, pages in (("idle", pool.idle), ("used", pool.in_use))
        ],
    )
    yield _gauge(
        "kvfold:kv_cache_bytes",
        "Of all groups: free, idle in the tree, or used.",
        [
            ({"state": "free"}, metrics.free_bytes),
            ({"state": "idle"}, metrics.idle_bytes),
            ({"state": "used"}, metrics.used_bytes),
        ],
    )
    missed = cache.queried_tokens - cache.hit_tokens - cache.too_short_tokens
    yield _counter(
        "kvfold:cache_tokens",
        "Prompt tokens: reused; matched but computed, since their window was gone; computed.",
        [
            ({"result": "hit"}, cache.hit_tokens),
            ({"result": "too_short"}, cache.too_short_tokens),
            ({"result": "miss"}, missed),
        ],
    )
    yield _counter(
        "kvfold:session_turns",
        "Turns that went on from what was kept, or had to look in the tree.",
        [({"how": "resumed"}, cache.resumed_turns), ({"how": "rematched"}, cache.rematched_turns)],
    )
    for name, text, value in (
        (
            "sessions_reclaimed",
            "Kept sequences that were given up for running requests.",
            cache.reclaimed_sessions,
        ),
        ("loaded_tokens", "Prompt tokens whose pages came from the tier into the tree.", cache.loaded_tokens),
        ("recomputed_tokens", "Tokens computed a second time after a preemption.", cache.recomputed_tokens),
        ("evicted_pages", "Pages that the tree gave up.", metrics.evicted_pages),
    ):
        yield _counter(f"kvfold:{name}", text, [({}, value)])


def _tier_families(tier: TierStats) -> Iterator[Metric]:
    yield _gauge(
        "kvfold:tier_works",
        "1 while the tier reads, or writes.",
        [({"what": "reading"}, tier.state.reading), ({"what": "writing"}, tier.state.writing)],
    )
    yield _gauge(
        "kvfold:tier_bytes",
        "Of pages in the tier, or queued to be written to it.",
        [({"state": "kept"}, tier.bytes), ({"state": "queued"}, tier.queued_bytes)],
    )
    yield _gauge("kvfold:tier_objects", "Segments and checkpoints in the tier.", [({}, tier.objects)])
    yield _counter(
        "kvfold:tier_events",
        "Of the tier: objects written, missing, damaged, evicted; prefixes dropped, loaded; errors.",
        [({"event": event}, getattr(tier, event)) for event in TIER_EVENTS],
    )
    yield _counter(
        "kvfold:tier_moved_bytes",
        "Bytes that were written to the tier, or loaded from it.",
        [({"how": "written"}, tier.written_bytes), ({"how": "loaded"}, tier.loaded_bytes)],
    )


def _counter(name: str, text: str, values: Iterable[tuple[Labels, float]]) -> Metric:
    return _family(CounterMetricFamily(name, text), "_total", values)


def _gauge(name: str, text: str, values: Iterable[tuple[Labels, float]]) -> Metric:
    return _family(GaugeMetricFamily(name, text), "", values)


def _family(family: Metric, suffix: str, values: Iterable[tuple[Labels, float]]) -> Metric:
    for labels, value in values:
        family.add_sample(family.name + suffix, dict(labels), float(value))
    return family


def _histogram(name: str, text: str, labels: Labels, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), histogram.buckets(), histogram.total)
    return family
