"""Random histories of a tier beside a model of it: what is found, what is loaded, what is on the disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.runtime.memory.tiers.object_tier import ObjectTier
from kvfold.runtime.memory.tiers.prefix import TierLimits
from tests.runtime.harness import PLANS
from tests.runtime.memory.tiers.tier_harness import (
    PAGE,
    SEGMENT,
    WAIT,
    find,
    get,
    open_tier,
    put,
    text,
)

LENGTH = 135
BASE = text(0, LENGTH)
# They part from the first one early, inside the second segment, at its end, and at once.
TEXTS = [
    BASE,
    *(np.concatenate([BASE[: at * PAGE], text(at, LENGTH - at)]) for at in (30, 70, 128)),
    text(9, LENGTH),
]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "store", "load", "restart", "flip", "remove"]),
        st.sampled_from(range(len(TEXTS))),
        st.sampled_from([1, 29, 30, 31, 63, 64, 65, 70, 71, 127, 128, 129, 135]),
        st.sampled_from(["", "t"]),
        st.integers(0, 10**6),
    ),
    max_size=20,
)


class Model:
    """Prefixes whose objects are whole, by tenant and tokens; segments are named by their ends."""

    def __init__(self, has_local: bool) -> None:
        self.segments: set[tuple[str, bytes]] = set()
        self.ends: set[tuple[str, bytes]] = set()
        self.has_local = has_local

    def store(self, tokens: np.ndarray, pages: int, tenant: str) -> None:
        for end in range(SEGMENT, pages + 1, SEGMENT):
            self.segments.add(self.key(tokens, end, tenant))
        if self.has_local or pages % SEGMENT:
            self.ends.add(self.key(tokens, pages, tenant))

    def holds(self, tokens: np.ndarray, pages: int, tenant: str) -> bool:
        chain = all(
            self.key(tokens, end, tenant) in self.segments for end in range(SEGMENT, pages + 1, SEGMENT)
        )
        needs_end = self.has_local or pages % SEGMENT
        return chain and (not needs_end or self.key(tokens, pages, tenant) in self.ends)

    def find(self, tokens: np.ndarray, tenant: str) -> int:
        return max((pages for pages in range(1, LENGTH + 1) if self.holds(tokens, pages, tenant)), default=0)

    @staticmethod
    def key(tokens: np.ndarray, pages: int, tenant: str) -> tuple[str, bytes]:
        return tenant, tokens[: pages * PAGE].tobytes()


def check_directory(tier: ObjectTier, place: Path) -> None:
    """The index says what is on the disk."""
    sizes = [file.stat().st_size for file in place.glob("*/*")]
    assert (tier.stats().objects, tier.stats().bytes) == (len(sizes), sum(sizes))


@pytest.mark.parametrize("plan", ["hybrid", "global", "local"])
@settings(max_examples=40, deadline=None)
@given(operations=OPERATIONS)
def test_a_tier_finds_and_loads_exactly_what_its_model_does(
    plan: str, operations: list[tuple[str, int, int, str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "t"
        tier, model = open_tier(place, plan), Model(plan != "global")
        for operation, which, pages, tenant, _ in operations:
            tokens = TEXTS[which]
            if operation == "store":
                put(tier, PLANS[plan], tokens, pages, tenant)
                assert tier.flush(WAIT)
                model.store(tokens, pages, tenant)
            elif operation == "restart":
                tier.close()
                tier = open_tier(place, plan)
            assert get(tier, PLANS[plan], tokens, pages, tenant) >= model.holds(tokens, pages, tenant)
            assert find(tier, tokens, LENGTH, tenant) == model.find(tokens, tenant)
            check_directory(tier, place)
        assert tier.close() and not tier.stats().damaged


@pytest.mark.parametrize("plan", ["hybrid", "global", "local"])
@settings(max_examples=40, deadline=None)
@given(operations=OPERATIONS)
def test_under_eviction_loss_and_damage_nothing_wrong_comes_out(
    plan: str, operations: list[tuple[str, int, int, str, int]]
) -> None:
    limits = TierLimits(90_000, tenant_bytes=60_000)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "t"
        tier = open_tier(place, plan, limits)
        for operation, which, pages, tenant, number in operations:
            files = sorted(place.glob("*/*"))
            touched = files[number % len(files)] if files else None
            if operation == "store":
                put(tier, PLANS[plan], TEXTS[which], pages, tenant)
                assert tier.flush(WAIT)
                on_disk = sum(file.stat().st_size for file in place.glob("*/*"))
                assert on_disk <= tier.stats().bytes <= limits.quota_bytes
            elif operation == "restart":
                tier.close()
                tier = open_tier(place, plan, limits)
            elif operation == "remove" and touched:
                touched.unlink()
            elif operation == "flip" and touched:
                data = bytearray(touched.read_bytes())
                data[number % len(data)] ^= 1
                touched.write_bytes(data)
            get(tier, PLANS[plan], TEXTS[which], pages, tenant)
            found = find(tier, TEXTS[which], LENGTH, tenant)
            while found and not get(tier, PLANS[plan], TEXTS[which], found, tenant):
                shorter = find(tier, TEXTS[which], LENGTH, tenant)
                assert shorter < found, "what could not be loaded is not found again"
                found = shorter
        tier.close()
