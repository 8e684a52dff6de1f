"""A tier finds what was stored, gives back just those bytes, and nobody else's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from kvfold.runtime.memory.tiers import read_ahead
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.object_tier import ObjectTier
from kvfold.runtime.memory.tiers.prefix import TierLimits
from tests.runtime.harness import PLANS
from tests.runtime.memory.tiers.tier_harness import (
    SEGMENT,
    WAIT,
    find,
    get,
    open_tier,
    pages_of,
    put,
    text,
)

Make = Callable[..., ObjectTier]


@pytest.fixture(params=["directory", "host"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    place = tmp_path / "tier" if request.param == "directory" else None
    return lambda *args, **kwargs: open_tier(place, *args, **kwargs)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("pages", [1, 63, 64, 65, 130])
def test_a_stored_prefix_is_found_and_comes_back_byte_for_byte(make: Make, name: str, pages: int) -> None:
    tier, plan, tokens = make(name), PLANS[name], text(0, 150)
    assert find(tier, tokens, 150) == 0 and not get(tier, plan, tokens, pages)
    assert put(tier, plan, tokens, pages) and tier.flush(WAIT)
    assert find(tier, tokens, 150) == find(tier, tokens, pages) == pages
    assert get(tier, plan, tokens, pages)
    assert not put(tier, plan, tokens, pages), "it is there"


def test_a_hit_ends_at_a_checkpoint_and_without_windows_at_a_segment_too(make: Make) -> None:
    tokens = text(0, 150)
    for name, least in ("hybrid", 0), ("global", SEGMENT):
        tier = make(name, model=name)
        put(tier, PLANS[name], tokens, 130)
        tier.flush(WAIT)
        assert find(tier, tokens, 127) == least


def test_conversations_share_segments_and_part_where_their_tokens_do(make: Make) -> None:
    tier, plan = make(), PLANS["hybrid"]
    one = text(0, 200)
    two = np.concatenate([one[: 70 * 16], text(1, 130)])
    for tokens, pages in (one, 66), (one, 200), (two, 150):
        put(tier, plan, tokens, pages)
        tier.flush(WAIT)
    assert tier.stats().objects == 3 + 1 + 3, (
        "three checkpoints; segments: three, of which two are one's alone"
    )
    assert find(tier, one, 199) == 66 and find(tier, two, 199) == 150 and find(tier, two, 149) == 66
    assert get(tier, plan, one, 200) and get(tier, plan, two, 150)


def test_the_caller_copies_only_what_is_lacking(make: Make) -> None:
    tier, plan, tokens = make(), PLANS["hybrid"], text(0, 200)
    put(tier, plan, tokens, 130)
    wanted = tier.wanted(tier.chain(""), tokens, 200)
    assert wanted is not None, "what is queued counts as there"
    assert (wanted.segments, wanted.checkpoint) == ((2,), True)
    assert wanted.global_pages.tolist() == list(range(128, 200))


def test_a_prefix_with_a_hole_is_not_found_until_somebody_fills_it(make: Make) -> None:
    tier, plan, tokens = make(), PLANS["hybrid"], text(0, 200)
    put(tier, plan, tokens, 130)
    tier.flush(WAIT)
    tier._store.unlink(tier._segment(tier.chain(""), tokens, 0))
    assert not get(tier, plan, tokens, 130)
    assert find(tier, tokens, 200) == 0
    assert put(tier, plan, tokens, 130), "the hole is filled by the next one who comes by"
    tier.flush(WAIT)
    assert find(tier, tokens, 200) == 130 and get(tier, plan, tokens, 130)


def test_another_tenant_model_or_kernel_finds_nothing(tmp_path: Path) -> None:
    tier, plan, tokens = open_tier(tmp_path / "t"), PLANS["hybrid"], text(0, 200)
    put(tier, plan, tokens, 130, "one")
    tier.flush(WAIT)
    for pages in range(1, 200):
        assert find(tier, tokens, pages, "two") == 0
    assert find(tier, tokens, 200, "one") == 130 and not get(tier, plan, tokens, 130, "two")
    other = open_tier(tmp_path / "t", model="other")
    assert find(other, tokens, 200, "one") == 0 and not get(other, plan, tokens, 130, "one")
    layout = TierLayout.of(plan)
    keys = {
        layout.root_key("m", "avx2"),
        layout.root_key("m", "amx"),
        layout.root_key("n", "avx2"),
        TierLayout.of(PLANS["many"]).root_key("m", "avx2"),
        TierLayout(32, layout.groups).root_key("m", "avx2"),
    }
    assert len(keys) == 5


def test_a_restarted_process_finds_what_there_was(tmp_path: Path) -> None:
    plan, tokens = PLANS["many"], text(0, 200)
    tier = open_tier(tmp_path / "t", "many")
    put(tier, plan, tokens, 190)
    assert tier.close()
    again = open_tier(tmp_path / "t", "many")
    assert find(again, tokens, 200) == 190 and get(again, plan, tokens, 190)
    assert again.stats().bytes == tier.stats().bytes


def test_a_session_that_moved_here_is_loaded_before_the_directory_is_looked_at_again(tmp_path: Path) -> None:
    plan, tokens = PLANS["hybrid"], text(0, 200)
    here, there = open_tier(tmp_path / "t"), open_tier(tmp_path / "t")
    put(there, plan, tokens, 190)
    there.flush(WAIT)
    assert find(here, tokens, 200) == 0
    assert get(here, plan, tokens, 190), "by its length, which a journal knows"
    assert find(here, tokens, 200) == 190


def test_what_another_process_wrote_or_took_away_is_seen_after_a_while(tmp_path: Path) -> None:
    plan = PLANS["hybrid"]
    here, there = open_tier(tmp_path / "t"), open_tier(tmp_path / "t")
    for seed in range(3):
        put(there, plan, text(seed, 80), 70)
        there.flush(WAIT)
        here.refresh()
        here.flush(WAIT)
        assert find(here, text(seed, 80), 80) == 70
    for file in (tmp_path / "t").glob("*/*"):
        file.unlink()
    here.refresh()
    here.flush(WAIT)
    assert here.stats().objects == here.stats().bytes == 0


def test_a_full_queue_drops_what_comes_and_counts_it() -> None:
    tier = open_tier(None, limits=TierLimits(1 << 30, queue_bytes=40_000))
    plan = PLANS["hybrid"]
    gate = Event()
    tier._writes.thread.do(gate.wait)
    for seed in range(4):
        put(tier, plan, text(seed, 70), 70)
    assert tier.stats().dropped == 2 and 0 < tier.stats().queued_bytes <= 40_000
    gate.set()
    assert tier.flush(WAIT) and tier.stats().queued_bytes == 0
    assert find(tier, text(0, 70), 70) == 70 and find(tier, text(3, 70), 70) == 0
    assert put(tier, plan, text(3, 70), 70), "what was dropped is wanted again"


def test_a_prefix_larger_than_the_quota_is_dropped(make: Make) -> None:
    tier = make("hybrid", TierLimits(10_000))
    put(tier, PLANS["hybrid"], text(0, 70), 70)
    tier.flush(WAIT)
    assert (tier.stats().objects, tier.stats().dropped) == (0, 1) and tier.state.writing


def test_the_quota_holds_and_the_least_recently_used_go_first(make: Make) -> None:
    plan, limits = PLANS["hybrid"], TierLimits(100_000)
    tier = make("hybrid", limits)
    for seed in range(12):
        put(tier, plan, text(seed, 70), 70)
        tier.flush(WAIT)
        assert get(tier, plan, text(0, 70), 70), "it is used all the time"
        assert tier.stats().bytes <= limits.quota_bytes
    here = [seed for seed in range(12) if find(tier, text(seed, 70), 70)]
    assert here == [0, *range(13 - len(here), 12)] and 2 < len(here) < 8
    assert tier.stats().evicted > 0


def test_what_another_process_uses_is_not_given_up_first(tmp_path: Path) -> None:
    plan, limits = PLANS["hybrid"], TierLimits(100_000)
    here = open_tier(tmp_path / "t", "hybrid", limits)
    for seed in range(4):
        put(here, plan, text(seed, 70), 70)
    here.flush(WAIT)
    assert here.stats().objects == 8
    for file in (tmp_path / "t").glob("*/*"):
        os.utime(file, times=(0, time.time() - 3600))
    there = open_tier(tmp_path / "t", "hybrid", limits)
    time.sleep(0.05)
    assert get(there, plan, text(0, 70), 70)
    put(here, plan, text(4, 70), 70)
    here.flush(WAIT)
    assert here.stats().evicted and [find(here, text(seed, 70), 70) for seed in range(2)] == [70, 0]


def test_a_tenant_s_share_is_taken_from_that_tenant(make: Make) -> None:
    plan = PLANS["hybrid"]
    tier = make("hybrid", TierLimits(1 << 30, tenant_bytes=50_000))
    put(tier, plan, text(99, 70), 70, "quiet")
    for seed in range(10):
        put(tier, plan, text(seed, 70), 70, "loud")
    tier.flush(WAIT)
    assert find(tier, text(99, 70), 70, "quiet") == 70 and find(tier, text(9, 70), 70, "loud") == 70
    assert find(tier, text(0, 70), 70, "loud") == 0
    assert tier._index.root_bytes(tier.chain("loud").root) <= 50_000


def test_a_cancelled_load_is_not_read() -> None:
    tier, plan, tokens = open_tier(None), PLANS["hybrid"], text(0, 70)
    put(tier, plan, tokens, 70)
    tier.flush(WAIT)
    gate = Event()
    tier._reads.thread.do(gate.wait)
    assert tier.load(tier.chain(""), tokens, 70).cancel()
    gate.set()
    assert tier._reads.thread.wait(WAIT)
    assert tier.stats().loaded == 0


def test_while_a_read_hangs_nobody_asks_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would wait its second for nothing, and be queued until the disk is back."""
    monkeypatch.setattr(read_ahead, "HANG_SECONDS", 0.05)
    tier, plan, tokens, gate = open_tier(None), PLANS["hybrid"], text(0, 70), Event()
    put(tier, plan, tokens, 70)
    tier.flush(WAIT)
    read = tier._store.read
    monkeypatch.setattr(tier._store, "read", lambda *asked: gate.wait(WAIT) and read(*asked))
    hanging = tier.load(tier.chain(""), tokens, 70)
    time.sleep(0.2)
    assert find(tier, tokens, 70) == 0
    gate.set()
    assert hanging.result(WAIT) is not None and find(tier, tokens, 70) == 70


def test_pages_in_these_tests_differ_by_group_page_and_prefix() -> None:
    plan = PLANS["many"]
    rows = [
        row.tobytes()
        for tokens in (text(0, 5), text(1, 5))
        for group in plan.groups
        for row in pages_of(plan, tokens, group.name, list(range(5)))
    ]
    assert len(set(rows)) == len(rows)
