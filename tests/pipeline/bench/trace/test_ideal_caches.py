"""Ideal caches beside the same laws, written down without any thought of time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kvfold.pipeline.bench.trace.ideal_caches import (
    FoldedCosts,
    IdealFolded,
    IdealUnfolded,
    PagePath,
    hit_rate,
    path_of,
    unfolded_hit_rate,
)
from kvfold.pipeline.bench.trace.trace_settings import ENDS, Ends, TraceSettings
from kvfold.pipeline.bench.trace.trace_turns import turns_of
from kvfold.plugins.contract.attention_shape import AttentionShape
from tests.pipeline.bench.trace.made_up_traces import GLOBAL, WINDOWED, random_requests

PAGE = 16
COSTS = FoldedCosts(page=3, tail=20)


def random_paths(seed: int, ends: Ends) -> list[PagePath]:
    settings = replace(TraceSettings(Path()), ends=ends)
    return [path_of(turn, PAGE) for turn in turns_of(random_requests(seed, 120), settings).turns]


@dataclass
class PlainFolded:
    """Ends as tuples of pages, the longest unused one first; bytes are counted anew each time."""

    budget: int
    ends: list[tuple[int, ...]] = field(default_factory=list)

    def read(self, path: PagePath) -> int:
        pages, limit = tuple(path.pages), path.hit_limit
        hits = [end for end in self.ends if len(end) <= limit and pages[: len(end)] == end]
        best = max(hits, key=len, default=())
        known = self._prefixes()
        common = max(count for count in range(len(pages) + 1) if pages[:count] in known)
        used = [*([best] if best else []), pages, pages[:limit], pages[: min(common, limit)]]
        for end in used:
            if end:
                self.ends = [*(each for each in self.ends if each != end), end]
        if 0 < limit < len(pages):
            self.ends = [pages[:limit], *(each for each in self.ends if each != pages[:limit])]
        while self._bytes() > self.budget:
            self.ends.pop(0)
        return len(best)

    def _prefixes(self) -> set[tuple[int, ...]]:
        return {end[:count] for end in self.ends for count in range(len(end) + 1)} | {()}

    def _bytes(self) -> int:
        return COSTS.tail * len(self.ends) + COSTS.page * (len(self._prefixes()) - 1)


@dataclass
class PlainUnfolded:
    """Pages by prefix, with when they were used; of one path the last goes first."""

    most: int
    used: dict[tuple[int, ...], tuple[int, int]] = field(default_factory=dict)
    now: int = 0

    def read(self, path: PagePath) -> int:
        self.now += 1
        prefixes = [tuple(path.pages[: count + 1]) for count in range(len(path.pages))]
        hit = 0
        while hit < path.hit_limit and prefixes[hit] in self.used:
            hit += 1
        self.used.update((prefix, (self.now, -len(prefix))) for prefix in prefixes)
        for prefix in sorted(self.used, key=self.used.__getitem__)[: max(0, len(self.used) - self.most)]:
            del self.used[prefix]
        return hit


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("budget", [30, 150, 400, 2000])
def test_the_folded_one_keeps_its_law(ends: Ends, budget: int) -> None:
    paths = random_paths(budget, ends)
    fast, plain = IdealFolded(COSTS, budget), PlainFolded(budget)
    found = [fast.read(path) for path in paths]
    assert found == [plain.read(path) for path in paths]
    assert any(found) or budget < 150


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("most", [0, 3, 20, 100])
def test_the_unfolded_one_keeps_its_law(ends: Ends, most: int) -> None:
    paths = random_paths(most, ends)
    fast, plain = IdealUnfolded(7, 7 * most + 6), PlainUnfolded(most)
    found = [fast.read(path) for path in paths]
    assert found == [plain.read(path) for path in paths]
    assert any(found) == (most > 0)


def test_endless_memory_has_the_most() -> None:
    paths = random_paths(5, "chat")
    endless = hit_rate(IdealUnfolded(1, None), paths, PAGE)
    folded = [hit_rate(IdealFolded(COSTS, budget), paths, PAGE) for budget in (200, 1000, 5000, None)]
    assert folded == sorted(folded)
    assert 0 < folded[0] < folded[-1] < endless < 1
    whole = hit_rate(IdealFolded(COSTS, 1 << 40), paths, PAGE)
    assert whole == folded[-1]


def test_what_an_end_costs_follows_from_the_plan() -> None:
    (everywhere, local) = WINDOWED.groups
    costs = FoldedCosts.of(WINDOWED)
    assert costs.page == everywhere.page_bytes(PAGE)
    assert costs.tail == (1 + 2) * local.page_bytes(PAGE)  # sinks, and a window of 32
    assert FoldedCosts.of(GLOBAL).tail == 0


def test_an_unfolded_model_with_windows_may_keep_ends_in_place_of_pages() -> None:
    """It never has less than without them; a little more where that pays."""
    whole = AttentionShape(4, 4, 2, 16)
    windowed = replace(whole, sliding_windows=(32, 32, 32, None))
    paths, page = random_paths(9, "chat"), PAGE * whole.kv_bytes(1)
    for pages, gains in ((5, False), (20, True), (80, False)):
        without, with_windows = (
            unfolded_hit_rate(shape, pages * page, paths, PAGE) for shape in (whole, windowed)
        )
        assert without == hit_rate(IdealUnfolded(page, pages * page), paths, PAGE)
        assert with_windows > without if gains else with_windows == without
