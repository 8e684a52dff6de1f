"""Host memory over a directory: what one of them has is found, and each is written what it lacks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvfold.plugins.contract.errors import TierError
from kvfold.runtime.memory.open_tier import stack_tiers
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.object_tier import DirectoryTier, HostTier, ObjectTier
from kvfold.runtime.memory.tiers.prefix import TierLimits
from kvfold.runtime.memory.tiers.stacked_tier import StackedTier
from kvfold.runtime.runtime_config import RuntimeConfig
from tests.runtime.harness import PLANS
from tests.runtime.memory.tiers.tier_harness import PLENTY, WAIT, find, get, open_tier, put, text


def stack(place: Path, plan: str = "hybrid", host: TierLimits = PLENTY) -> tuple[KvTier, list[ObjectTier]]:
    tiers = [open_tier(None, plan, host), open_tier(place, plan)]
    return StackedTier(tiers), tiers


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("pages", [1, 64, 130])
def test_what_is_handed_over_is_in_both(name: str, pages: int, tmp_path: Path) -> None:
    tier, both = stack(tmp_path / "t", name)
    tokens = text(0, 150)
    assert put(tier, PLANS[name], tokens, pages) and tier.flush(WAIT)
    for each in (tier, *both):
        assert find(each, tokens, 150) == pages and get(each, PLANS[name], tokens, pages)
    assert not put(tier, PLANS[name], tokens, pages)
    assert tier.stats().objects == 2 * both[0].stats().objects


def test_each_is_written_only_what_it_lacks(tmp_path: Path) -> None:
    """The segments are in the directory and the longest end is in host memory: either gets the rest."""
    tier, (host, directory) = stack(tmp_path / "t")
    plan, tokens = PLANS["hybrid"], text(0, 200)
    put(directory, plan, tokens, 130)
    put(host, plan, tokens, 150)
    assert tier.flush(WAIT) and find(tier, tokens, 200) == 150
    before = [each.stats().written for each in (host, directory)]
    assert put(tier, plan, tokens, 150) and tier.flush(WAIT)
    assert [each.stats().written for each in (host, directory)] == [before[0], before[1] + 1]
    assert get(directory, plan, tokens, 150)
    assert put(tier, plan, tokens, 130) and tier.flush(WAIT)
    assert get(host, plan, tokens, 130)


def test_it_comes_from_host_memory_where_that_has_all_of_it_else_from_the_directory(tmp_path: Path) -> None:
    tier, (host, directory) = stack(tmp_path / "t")
    plan = PLANS["hybrid"]
    put(tier, plan, text(0, 70), 70)
    put(directory, plan, text(1, 70), 70)
    assert tier.flush(WAIT)
    assert get(tier, plan, text(0, 70), 70) and (host.stats().loaded, directory.stats().loaded) == (1, 0)
    assert get(tier, plan, text(1, 70), 70) and (host.stats().loaded, directory.stats().loaded) == (1, 1)


def test_what_host_memory_gave_up_is_still_in_the_directory(tmp_path: Path) -> None:
    tier, (host, _) = stack(tmp_path / "t", host=TierLimits(60_000))
    plan = PLANS["hybrid"]
    for seed in range(8):
        put(tier, plan, text(seed, 70), 70)
        assert tier.flush(WAIT)
    assert find(host, text(0, 70), 70) == 0 and host.stats().evicted
    assert all(get(tier, plan, text(seed, 70), 70) for seed in range(8))


def test_a_directory_that_vanished_is_told_and_host_memory_goes_on(tmp_path: Path) -> None:
    tier, _ = stack(tmp_path / "t")
    plan = PLANS["hybrid"]
    shutil.rmtree(tmp_path / "t")
    put(tier, plan, text(0, 70), 70)
    assert tier.flush(WAIT)
    assert not tier.state.writing and "cannot write" in tier.state.reason
    assert get(tier, plan, text(0, 70), 70)
    put(tier, plan, text(1, 70), 70)
    assert tier.flush(WAIT) and get(tier, plan, text(1, 70), 70), "the directory's pause is its own"
    assert tier.close()


def test_a_configuration_says_which_tiers_there_are(tmp_path: Path) -> None:
    layout = TierLayout.of(PLANS["hybrid"])
    key, config = layout.root_key("m", "avx2"), RuntimeConfig()
    assert stack_tiers(layout, key, config) is None
    host = replace(config, kv_host_bytes=1 << 20)
    assert isinstance(stack_tiers(layout, key, host), HostTier)
    assert isinstance(stack_tiers(layout, key, replace(config, kv_tier=tmp_path / "a")), DirectoryTier)
    both = stack_tiers(layout, key, replace(host, kv_tier=tmp_path / "a"))
    assert isinstance(both, StackedTier)
    tokens = np.concatenate([text(0, 70), text(1, 9)])
    put(both, PLANS["hybrid"], tokens, 70)
    assert both.close() and both.stats().objects == 4
    with pytest.raises(TierError):
        stack_tiers(layout, key, replace(host, kv_tier=tmp_path / "none" / "t"))
