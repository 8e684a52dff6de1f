"""What tests of the tiers share: pages that say whose they are, and a tier in a directory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.memory.horizon import horizons
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.object_tier import DirectoryTier, HostTier, ObjectTier
from kvfold.runtime.memory.tiers.prefix import TierLimits
from tests.runtime.harness import PLANS

PAGE = 16
SEGMENT = 64
WAIT = 60.0
PLENTY = TierLimits(1 << 30)


def page_bytes(group: str, tokens: np.ndarray, page: int, size: int) -> np.ndarray:
    """What an engine would have computed: it depends on all tokens before."""
    return _page_bytes(group.encode() + tokens[: (page + 1) * PAGE].astype(np.int32).tobytes(), size)


@lru_cache(maxsize=4096)
def _page_bytes(said: bytes, size: int) -> np.ndarray:
    return np.frombuffer(hashlib.shake_128(said).digest(size), np.uint8)


def pages_of(plan: FoldPlan, tokens: np.ndarray, group: str, places: np.ndarray | list[int]) -> np.ndarray:
    """Rows of a group, uint8 [n, page_bytes]."""
    size = next(each.page_bytes(PAGE) for each in plan.groups if each.name == group)
    rows = [page_bytes(group, tokens, int(page), size) for page in places]
    return np.stack(rows) if rows else np.empty((0, size), np.uint8)


def expected(plan: FoldPlan, tokens: np.ndarray, pages: int) -> dict[str, np.ndarray]:
    """What a load must give."""
    return {
        law.name: pages_of(
            plan, tokens, law.name, list(law.needed(pages)) if law.is_local else list(range(pages))
        )
        for law in horizons(plan)
    }


def same(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> bool:
    """Whether rows are equal, group by group."""
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def put(tier: KvTier, plan: FoldPlan, tokens: np.ndarray, pages: int, tenant: str = "") -> bool:
    """Hand over a prefix as the pages' owner does; whether the tier wanted something."""
    chain = tier.chain(tenant)
    wanted = tier.wanted(chain, tokens, pages)
    if wanted is None:
        return False
    rows = {}
    for law in horizons(plan):
        places = list(law.needed(pages)) if law.is_local else wanted.global_pages
        if wanted.checkpoint or not law.is_local:
            rows[law.name] = pages_of(plan, tokens, law.name, places)
    tier.store(chain, tokens, wanted, rows)
    return True


def get(tier: KvTier, plan: FoldPlan, tokens: np.ndarray, pages: int, tenant: str = "") -> bool:
    """Load a prefix; False where it is not there. What is loaded must be right."""
    loaded = tier.load(tier.chain(tenant), tokens, pages).result(WAIT)
    if loaded is None:
        return False
    assert loaded.pages == pages
    assert same(loaded.rows, expected(plan, tokens, pages)), "wrong bytes"
    return True


def find(tier: KvTier, tokens: np.ndarray, max_pages: int, tenant: str = "") -> int:
    """The longest prefix in a tier."""
    return tier.find(tier.chain(tenant), tokens, max_pages)


def text(seed: int, pages: int) -> np.ndarray:
    """Tokens of some pages."""
    return np.random.default_rng(seed).integers(0, 50_000, pages * PAGE)


def open_tier(
    place: Path | None, plan: str = "hybrid", limits: TierLimits = PLENTY, model: str = "m"
) -> ObjectTier:
    """A tier that has looked at what is there; in host memory where there is no place."""
    layout = TierLayout.of(PLANS[plan])
    root = layout.root_key(model, "avx2")
    tier = HostTier(layout, root, limits) if place is None else DirectoryTier(place, layout, root, limits)
    assert tier.flush(WAIT)
    return tier
