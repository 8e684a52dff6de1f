"""What the search does with measured plans: neighbours are tried, the best that was measured is chosen."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.export.search.choose import by_size, choose_banks, front, neighbours, refine, smallest_below
from kvfold.export.search.costs import Cost
from kvfold.export.search.space import Solution
from kvfold.plugins.contract.errors import PlanError
from tests.export.search.made_up_spaces import NLL, make_space, make_targets


def test_neighbours_leave_out_a_bank_each() -> None:
    space, globals_ = make_space(5), frozenset({3})
    targets = make_targets(space, globals_, 2)
    chosen = choose_banks(space, globals_, targets)
    found = neighbours(space, globals_, targets, chosen)
    assert found
    assert [s.cost for s in found] == sorted(s.cost for s in found)
    for other in found:
        assert other.options != chosen.options
        assert other.cost >= chosen.cost
        assert all(t.holds(b) for t, b in zip(targets, other.kv_bytes, strict=True))


def test_refinement_goes_by_what_is_measured() -> None:
    space, globals_ = make_space(5), frozenset({3})
    targets = make_targets(space, globals_, 2)
    first = choose_banks(space, globals_, targets)
    measured: list[Solution] = []

    def measure(solution: Solution) -> Cost:
        measured.append(solution)
        return Cost(kl=1.0 if solution == first else 0.5 + 0.1 * len(measured), nll=NLL)

    best = refine(space, globals_, targets, measure)
    assert len(measured) == space.settings.plans
    assert len({solution.options for solution in measured}) == len(measured)
    assert (best.solution, best.cost.kl) == (measured[1], 0.7)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), limit=st.floats(0.01, 2), scale=st.floats(0.3, 3), plans=st.integers(2, 8))
def test_the_smallest_plan_below_a_kl_is_measured(seed: int, limit: float, scale: float, plans: int) -> None:
    space = make_space(seed)
    sizes = by_size(front(space, frozenset({2})))
    assert [s.kv_bytes[-1] for s in sizes] == sorted({s.kv_bytes[-1] for s in sizes})
    measured: dict[Solution, float] = {}

    def measure(solution: Solution) -> Cost:
        assert solution not in measured, "measured twice"
        measured[solution] = scale * solution.kl
        return Cost(kl=measured[solution], nll=NLL)

    try:
        best = smallest_below(sizes, limit, plans, measure)
    except PlanError as error:
        assert min(measured.values()) > limit
        assert f"lowest KL is {min(measured.values()):.4g}" in str(error)
        assert scale * sizes[-1].kl > limit
    else:
        assert best.cost.kl <= limit
        below = [s for s, kl in measured.items() if kl <= limit]
        assert best.solution == min(below, key=lambda s: s.kv_bytes)
    assert len(measured) <= plans
