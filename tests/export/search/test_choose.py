"""Laws of the choice: targets are met where they can be, plans are lawful, nothing cheaper is overlooked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import product
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.export.search.choose import (
    Horizons,
    choose_banks,
    choose_horizons,
    front,
    grow_globals,
    settle,
    smallest_bytes,
)
from kvfold.export.search.costs import Change, Cost, CostTable, guess_bank
from kvfold.export.search.space import ByteTarget, PlanSpace, Solution
from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.plan_presets import check_beside
from tests.export.search.made_up_spaces import NLL, make_space, make_targets

horizons = st.sets(st.integers(0, 6)).map(frozenset)
PROPERTY = settings(max_examples=60, deadline=None)


@PROPERTY
@given(
    seed=st.integers(0, 999),
    globals_=horizons,
    slack=st.floats(1, 6),
    heads=st.sampled_from((1, 3)),
    distant=st.booleans(),
)
def test_a_reachable_target_is_met_by_a_lawful_plan(
    seed: int, globals_: frozenset[int], slack: float, heads: int, distant: bool
) -> None:
    space = replace(make_space(seed, heads=heads, lengths=(1024, 8192)), share_distant_globals=distant)
    targets = make_targets(space, globals_, slack)
    solution = choose_banks(space, globals_, targets)
    plan = space.plan(solution)  # raises where a law of FoldPlan is broken
    assert solution.kv_bytes == tuple(plan.kv_bytes(target.length) for target in targets)
    assert all(plan.kv_bytes(t.length) <= t.bytes_per_token * t.length for t in targets)
    assert {i for i, layer in enumerate(plan.layers) if layer.sliding_window is None} == globals_
    for bank in plan.banks:
        assert bank.num_key_value_heads == 1 or (bank.num_key_value_heads == heads and not bank.consumers)


@PROPERTY
@given(seed=st.integers(0, 999), slack=st.floats(1, 6), data=st.data())
def test_a_checkpoints_own_windows_are_kept_or_shortened(
    seed: int, slack: float, data: st.DataObject
) -> None:
    """Windows of 200 and RoPEs of two kinds: a bank's layers agree in both, sinks come with a shorter one."""
    own = tuple(data.draw(st.sampled_from((None, 200, 4096))) for _ in range(7))
    ropes = tuple(data.draw(st.integers(0, 1)) for _ in range(7))
    globals_ = frozenset(data.draw(st.sets(st.integers(0, 6))))
    space = make_space(seed)
    shape = replace(space.shape, sliding_windows=own, layer_ropes=ropes)
    table = replace(
        space.table,
        windowed={key: cost for key, cost in space.table.windowed.items() if key[1] < (own[key[0]] or inf)},
        banks={
            bank: cost
            for bank, cost in space.table.banks.items()
            if len({(own[layer], ropes[layer]) for layer in bank}) == 1
        },
    )
    space = replace(space, shape=shape, table=table)
    targets = make_targets(space, globals_, slack)
    solution = choose_banks(space, globals_, targets)
    plan = space.plan(solution)
    check_beside(plan, shape)
    assert solution.kv_bytes == (plan.kv_bytes(2048),)
    for layer, (chosen, window) in enumerate(zip(plan.layers, own, strict=True)):
        assert chosen.sink_size == (0 if chosen.sliding_window == window else space.settings.sink_size)
        assert layer not in globals_ or chosen.sliding_window == window


@PROPERTY
@given(seed=st.integers(0, 999), globals_=horizons, length=st.sampled_from((512, 8192)))
def test_an_unreachable_target_names_the_smallest(seed: int, globals_: frozenset[int], length: int) -> None:
    space = make_space(seed, lengths=(length,))
    (target,) = make_targets(space, globals_, 0.99)
    (least,) = smallest_bytes(space, globals_)
    with pytest.raises(
        PlanError, match=rf"smallest reaches {least / length:.1f} bytes a token at {length:,}"
    ):
        choose_banks(space, globals_, [target])
    assert choose_banks(space, globals_, [ByteTarget(least / length, length)]).kv_bytes == (least,)


def every_solution(space: PlanSpace, globals_: frozenset[int]) -> list[Solution]:
    """Every plan, one by one."""
    chain = [*sorted(globals_), *(i for i in range(space.shape.num_hidden_layers) if i not in globals_)]
    found: list[Solution] = []

    def extend(start: int, before: Solution) -> None:
        if start == len(chain):
            found.append(before)
            return
        for option in space.options(chain, start, globals_):
            extend(start + len(option.layers), Solution((*before.options, option)))

    extend(0, Solution(()))
    return found


@PROPERTY
@given(seed=st.integers(0, 99), globals_=st.sets(st.integers(0, 3)).map(frozenset), slack=st.floats(1, 4))
def test_nothing_cheaper_is_overlooked(seed: int, globals_: frozenset[int], slack: float) -> None:
    space = make_space(seed, layers=4, lengths=(512, 4096))
    targets = make_targets(space, globals_, slack)
    every = every_solution(space, globals_)
    fitting = [s for s in every if all(t.holds(b) for t, b in zip(targets, s.kv_bytes, strict=True))]
    assert choose_banks(space, globals_, targets).cost == pytest.approx(min(s.cost for s in fitting))
    for ours, other in product(front(space, globals_), every):
        beaten = other.cost < ours.cost - 1e-9
        assert not (beaten and all(a <= b for a, b in zip(other.kv_bytes, ours.kv_bytes, strict=True)))


@PROPERTY
@given(seed=st.integers(0, 999), globals_=horizons, slack=st.floats(1, 4))
def test_guessing_large_banks_misses_nothing(seed: int, globals_: frozenset[int], slack: float) -> None:
    """As long as they cost what their parts do, and more."""
    whole = make_space(seed)
    small = {Change("bank", layers): cost for layers, cost in whole.table.banks.items() if len(layers) < 3}
    truth: dict[tuple[int, ...], Cost] = {
        layers: Cost(kl=guess_bank(whole.table.banks, layers).kl + cost.kl, nll=cost.nll)
        for layers, cost in whole.table.banks.items()
        if len(layers) == 3
    }
    whole = replace(whole, table=replace(whole.table, banks={**whole.table.banks, **truth}))
    targets = make_targets(whole, globals_, slack)
    measured: list[Change] = []

    def space() -> PlanSpace:
        known = small | {change: truth[change.layers] for change in measured}
        table = CostTable.of(NLL, known, [Change("bank", layers) for layers in truth])
        return replace(whole, table=replace(table, windowed=whole.table.windowed, int8=whole.table.int8))

    settled = settle(space, lambda guess: [choose_banks(guess, globals_, targets)], measured.extend)
    assert len(set(measured)) == len(measured), "measured twice"
    assert settled.table.guessed == truth.keys() - {change.layers for change in measured}
    found, best = (choose_banks(x, globals_, targets) for x in (settled, whole))
    assert found.cost == pytest.approx(best.cost)
    assert not settled.table.guessed & {option.layers for option in found.options}


def test_more_bytes_never_cost_more() -> None:
    space = make_space(3)
    globals_ = frozenset({2, 5})
    costs = [choose_banks(space, globals_, make_targets(space, globals_, s)).cost for s in (1, 2, 3, 5, 9)]
    assert costs == sorted(costs, reverse=True)


def test_a_layer_that_int8_hurts_stays_float_where_bytes_allow() -> None:
    space = make_space(0)
    int8 = {layer: Cost(kl=0.5 if layer == 4 else 0.001, nll=NLL) for layer in range(7)}
    space = replace(space, table=replace(space.table, int8=int8))
    rich = space.plan(choose_banks(space, frozenset(), make_targets(space, frozenset(), 99)))
    assert [layer.kv_dtype for layer in rich.layers] == ["int8"] * 4 + ["float32"] + ["int8"] * 2
    poor = space.plan(choose_banks(space, frozenset(), make_targets(space, frozenset(), 1)))
    assert {layer.kv_dtype for layer in poor.layers} == {"int8"}


def test_global_layers_share_over_others_only_when_asked_to() -> None:
    space = make_space(1)
    banks = {**space.table.banks, (1, 5): Cost(kl=0.0, nll=NLL), (0, 2): Cost(kl=0.0, nll=NLL)}
    space = replace(space, table=replace(space.table, banks=banks))
    globals_ = frozenset({1, 5})
    for distant, donor in ((False, 5), (True, 1)):
        allowed = replace(space, share_distant_globals=distant)
        plan = allowed.plan(choose_banks(allowed, globals_, make_targets(allowed, globals_, 1)))
        assert plan.layers[5].donor == donor
        assert plan.layers[2].donor != 0, "local layers never share over a global one"


def retrieval(globals_: frozenset[int]) -> float:
    """Layer 3 is needed; then 1 and 5 help, and 5 more."""
    return 20.0 if 3 not in globals_ else 10.0 - 5 * (5 in globals_) - 3 * (1 in globals_)


def measure_globals(base: frozenset[int], candidates: Collection[int]) -> dict[int, float]:
    return {layer: retrieval(base | {layer}) for layer in candidates}


def test_globals_grow_by_what_they_do_for_retrieval() -> None:
    trail = grow_globals(range(8), 20.0, 2.5, lambda _: True, measure_globals)
    assert [sorted(step.globals_) for step in trail] == [[], [3], [3, 5], [1, 3, 5]]


def test_globals_stop_where_the_bytes_do() -> None:
    trail = grow_globals(range(8), 20.0, 2.5, lambda globals_: len(globals_) < 3, measure_globals)
    assert [len(step.globals_) for step in trail] == [0, 1, 2]


@pytest.mark.parametrize(("weight", "count"), [(0.0, 0), (0.01, 2), (10.0, 3)])
def test_globals_are_as_many_as_they_are_worth(weight: float, count: int) -> None:
    """Where a global layer costs heads elsewhere, `retrieval_weight` decides; windows cost nothing here."""
    space = make_space(5)
    free = {at: Cost(kl=0.0, nll=NLL) for at in space.table.windowed}
    space = replace(
        space,
        table=replace(space.table, windowed=free),
        settings=space.settings.model_copy(update={"retrieval_weight": weight}),
    )
    trail = grow_globals(range(7), 20.0, 0.0, lambda globals_: len(globals_) <= 3, measure_globals)
    targets = make_targets(space, trail[-1].globals_, 1.5)
    assert len(choose_horizons(space, trail, targets).globals_) == count


def test_a_window_that_costs_much_makes_a_layer_global() -> None:
    space = make_space(5)
    windowed = {at: Cost(kl=0.5 if at[0] == 3 else 0.0, nll=NLL) for at in space.table.windowed}
    space = replace(space, table=replace(space.table, windowed=windowed))
    trail = [Horizons(frozenset(), NLL), Horizons(frozenset({3}), NLL)]
    assert choose_horizons(space, trail, make_targets(space, frozenset({3}), 2)) == trail[1]


def test_later_rounds_try_fewer_layers() -> None:
    tried: list[int] = []

    def measure(base: frozenset[int], candidates: Collection[int]) -> dict[int, float]:
        tried.append(len(candidates))
        return {layer: 100.0 - len(base) - layer / 100 for layer in candidates}

    trail = grow_globals(range(40), 100.0, 0.0, lambda globals_: len(globals_) <= 6, measure)
    assert tried == [40, 39, 19, 9, 8, 7]
    assert len(trail[-1].globals_) == 6
