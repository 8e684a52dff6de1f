"""What a scraper reads: names, labels and values; and the dashboard that asks for them."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.server.counts.histogram import Histogram
from tests.root import ROOT
from tests.runtime.server.asgi_client import JSON, Exchange, ask, until
from tests.runtime.server.puppet_llm import PuppetLLM
from tests.runtime.server.served import make_server

LABELS = {"model_name": "puppet", "engine": "0"}
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape() -> Series:
    """Samples after three replies, one cancelled, one that failed, and a refusal."""

    async def call() -> Series:
        llm = PuppetLLM()
        app, state = make_server(llm)
        for stream in (True, False, True):
            await ask(app, "POST", "/say", {"prompt": "1234", "stream": stream})
        llm.go.clear()
        left = Exchange(app, "POST", "/say", b"{}", JSON)
        await until(lambda: len(llm.replies) == 4)
        left.leave()
        await left.end()
        state.draining = True
        await ask(app, "POST", "/say", {})
        llm.see(running=3, waiting=7)
        answer = await ask(app, "GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return samples(answer.body.decode())

    return asyncio.run(call())


def samples(text: str) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


@pytest.fixture(scope="module")
def series() -> Series:
    return scrape()


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


@pytest.mark.parametrize("prefix", ["vllm:", "kvfold:"])
def test_names_of_other_servers_are_there_with_their_labels(series: Series, prefix: str) -> None:
    expected = {
        "num_requests_running": 3,
        "num_requests_waiting": 7,
        "kv_cache_usage_perc": 0.39,
        "prefix_cache_queries_total": 10,
        "prefix_cache_hits_total": 4,
        "prompt_tokens_total": 12,
        "generation_tokens_total": 9,
        "num_preemptions_total": 0,
        "time_to_first_token_seconds_count": 3,
        "inter_token_latency_seconds_count": 6,
        "e2e_request_latency_seconds_count": 3,
        "request_queue_time_seconds_count": 3,
        "request_queue_time_seconds_sum": 0.75,
    }
    assert {name: value(series, prefix + name, **LABELS) for name in expected} == expected
    ends = {
        reason: value(series, prefix + "request_success_total", **LABELS, finished_reason=reason)
        for reason in ("stop", "length", "abort", "error")
    }
    assert ends == {"stop": 3, "length": 0, "abort": 1, "error": 0}
    assert value(series, prefix + "cache_config_info", block_size="16", num_gpu_blocks="40", engine="0") == 1
    assert value(series, prefix + "request_queue_time_seconds_bucket", **LABELS, le="0.3") == 3


def test_what_only_we_have(series: Series) -> None:
    assert value(series, "kvfold:pool_pages", group="global", state="used") == 30
    states = {"free": 400 - 156 - 58, "idle": 40 + 18, "used": 120 + 36}
    assert {each: value(series, "kvfold:kv_cache_bytes", state=each) for each in states} == states
    assert value(series, "kvfold:pool_pages", group="window", state="idle") == 3
    results = {"hit": 4, "too_short": 2, "miss": 4}
    assert {r: value(series, "kvfold:cache_tokens_total", result=r) for r in results} == results
    assert value(series, "kvfold:request_cancelled_total", reason="client") == 1
    assert value(series, "kvfold:requests_refused_total", reason="draining") == 1
    assert value(series, "kvfold:evicted_pages_total") == 5
    assert value(series, "kvfold:loaded_tokens_total") == 3
    assert value(series, "kvfold:ready") == 0
    assert value(series, "kvfold:step_age_seconds") == 0
    for name in ("recomputed_tokens", "sessions_reclaimed"):
        assert value(series, f"kvfold:{name}_total") == 0
    assert value(series, "kvfold:session_turns_total", how="resumed") == 0
    assert value(series, "kvfold:grammar_compile_seconds_count") == 0
    assert value(series, "kvfold:stream_backlog_characters") == 0
    assert value(series, "process_resident_memory_bytes") > 0


def test_what_a_tier_holds_and_does(series: Series) -> None:
    events = {
        "written": 9,
        "dropped": 2,
        "loaded": 4,
        "missing": 1,
        "damaged": 5,
        "evicted": 6,
        "errors": 7,
    }
    assert {each: value(series, "kvfold:tier_events_total", event=each) for each in events} == events
    assert value(series, "kvfold:tier_bytes", state="kept") == 4096
    assert value(series, "kvfold:tier_bytes", state="queued") == 512
    assert value(series, "kvfold:tier_objects") == 3
    assert value(series, "kvfold:tier_moved_bytes_total", how="written") == 8192
    assert value(series, "kvfold:tier_moved_bytes_total", how="loaded") == 1024
    assert [value(series, "kvfold:tier_works", what=each) for each in ("reading", "writing")] == [1, 0]


def test_every_query_of_the_dashboard_finds_its_series(series: Series) -> None:
    text = (ROOT / "runtime" / "server" / "observe" / "grafana_dashboard.json").read_text()
    queries = [target["expr"] for panel in json.loads(text)["panels"] for target in panel.get("targets", ())]
    asked = set()
    for query in queries:
        labels = set(re.findall(r"(\w+)(?:=~|=)", query)) - {"instance"}
        labels |= {name for names in re.findall(r"by \(([^)]*)\)", query) for name in names.split(", ")}
        names = re.findall(r"\b((?:kvfold:|process_)\w+)\{", query)
        assert names, query
        for name in names:
            found = [dict(key) for each, key in series if each == name]
            assert found and all(labels <= each.keys() for each in found), (name, labels)
        asked |= set(names)
    families = {re.sub("_(bucket|count|sum|created)$", "", name) for name, _ in series}
    unseen = {
        name for name in families - {re.sub("_bucket$", "", name) for name in asked} if "kvfold:" in name
    }
    assert unseen == {"kvfold:cache_config_info"}, "what is measured is drawn"


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(seconds)
    histogram.observe(2.0, times=3)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 6), ("+Inf", 7)]
    assert histogram.total == 18


def test_tokens_that_come_together_are_as_many_gaps() -> None:
    async def call() -> None:
        _, state = make_server(PuppetLLM())
        state.metrics.gap(0.4, 4)
        assert state.metrics.between_tokens.buckets()[9] == ("0.2", 4)
        assert state.metrics.between_tokens.buckets()[7] == ("0.1", 4)
        assert state.metrics.between_tokens.buckets()[6] == ("0.075", 0)

    asyncio.run(call())


def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    async def call() -> Any:
        app, _ = make_server(PuppetLLM())
        return await ask(
            app, "GET", "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
        )

    answer = asyncio.run(call())
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


def test_the_version_is_told() -> None:
    async def call() -> Any:
        return await ask(make_server(None)[0], "GET", "/version")

    assert asyncio.run(call()).json() == {"version": VERSION}
