"""Choose a plan from measured costs: which layers stay global, and the cheapest banks within the bytes.

Costs of banks are measured one at a time and added up: a guess that ranks plans well and is too low or too
high as a figure. So whole plans are measured in the end, and the guess is scaled by what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvfold.export.search.costs import Change, Cost
from kvfold.export.search.space import ByteTarget, Option, PlanSpace, Solution
from kvfold.plugins.contract.errors import PlanError

MeasurePlan = Callable[[Solution], Cost]
FEWEST_CANDIDATES = 8


@dataclass(frozen=True)
class Horizons:
    """The layers that keep the horizon they have, and an answer's NLL in nat when all others are windowed."""

    globals_: frozenset[int]
    nll: float


@dataclass(frozen=True)
class Candidate:
    """A whole plan and what it was measured to cost."""

    solution: Solution
    cost: Cost


def grow_globals(
    layers: Collection[int],
    none: float,
    enough: float,
    fits: Callable[[frozenset[int]], bool],
    measure: Callable[[frozenset[int], Collection[int]], Mapping[int, float]],
) -> list[Horizons]:
    """Make the layer global that helps retrieval most, again and again.

    The first one decides what the others are worth, so every layer is tried again in the second round;
    from then on the better half of those tried goes on to the next, and FEWEST_CANDIDATES of them at least.

    Args:
        layers: that see further than the measured window on their own; all, in a model without windows.
        none: NLL when no layer is global.
        enough: the NLL to stop at.
        fits: whether a plan with these globals can meet the targets.
        measure: NLL with each candidate added to the globals.

    Returns:
        Every set on the way, from no globals on.
    """
    trail = [Horizons(frozenset(), none)]
    candidates = sorted(layers)
    while trail[-1].nll > enough and candidates:
        globals_ = trail[-1].globals_
        candidates = [layer for layer in candidates if fits(globals_ | {layer})]
        if not candidates:
            break
        found = measure(globals_, candidates)
        best, *rest = sorted(candidates, key=lambda layer: (found[layer], layer))
        trail.append(Horizons(globals_ | {best}, found[best]))
        candidates = rest if len(trail) == 2 else rest[: max(FEWEST_CANDIDATES, len(candidates) // 2)]
    return trail


def settle(
    space_of: Callable[[], PlanSpace],
    choose: Callable[[PlanSpace], Sequence[Solution]],
    measure: Callable[[Sequence[Change]], object],
) -> PlanSpace:
    """The space once nothing that is chosen rests on a guess.

    As long as no guess is too high, what is chosen then would be chosen from a space without guesses, too.

    Args:
        space_of: the space by what is measured so far.
        choose: plans from it.
        measure: banks, for the next space.
    """
    while True:
        space = space_of()
        used = {option.layers for plan in choose(space) for option in plan.options}
        guessed = [Change("bank", layers) for layers in sorted(used & space.table.guessed)]
        if not guessed:
            return space
        measure(guessed)


def choose_horizons(space: PlanSpace, trail: Sequence[Horizons], targets: Sequence[ByteTarget]) -> Horizons:
    """The set under which the best plan within the targets is predicted to lose least.

    Every global layer more answers better and takes bytes that other banks then lack.

    Args:
        space: the costs.
        trail: sets of globals for which some plan meets the targets.
        targets: of the space's lengths.
    """
    return min(trail, key=lambda horizons: (predict(space, horizons, targets), len(horizons.globals_)))


def predict(space: PlanSpace, horizons: Horizons, targets: Sequence[ByteTarget]) -> float:
    """What the best plan with these globals loses, nat: banks and answers, each measured alone."""
    answers = score(space, Cost(kl=0.0, nll=horizons.nll))
    return choose_banks(space, horizons.globals_, targets).cost + answers


def front(space: PlanSpace, globals_: frozenset[int], targets: Sequence[ByteTarget] = ()) -> list[Solution]:
    """The plans that no other one beats in both cost and bytes, dearest first: a dynamic programme.

    Global layers in order, then the local ones, each bank taking the next few layers of that chain. Two
    beginnings compete when they cover the same layers. Targets, where given, are of the space's lengths.
    """
    chain = _chain(space, globals_)
    options = [list(space.options(chain, start, globals_)) for start in range(len(chain))]
    rest = _least_bytes(space, options)
    states: list[list[_State]] = [[_State(0.0, (0,) * len(space.lengths))], *([] for _ in chain)]
    for start, choices in enumerate(options):
        for state in _undominated(states[start]):
            for option in choices:
                stop = start + len(option.layers)
                kv_bytes = _add(state.kv_bytes, option.kv_bytes)
                if _meets(_add(kv_bytes, rest[stop]), targets):
                    states[stop].append(_State(state.cost + option.cost, kv_bytes, option, state))
    found = [Solution(tuple(state.path())) for state in _undominated(states[-1])]
    return sorted(found, key=lambda solution: (-solution.cost, solution.kv_bytes))


def choose_banks(space: PlanSpace, globals_: frozenset[int], targets: Sequence[ByteTarget]) -> Solution:
    """The plan of least cost within every target.

    Raises:
        PlanError: none is; the smallest reachable bytes are named.
    """
    found = front(space, globals_, targets)
    if found:
        return found[-1]
    smallest = ", ".join(
        f"{least / target.length:.1f} bytes a token at {target.length:,} tokens"
        for target, least in zip(targets, smallest_bytes(space, globals_), strict=True)
    )
    asked = ", ".join(f"{target.bytes_per_token:g} at {target.length:,}" for target in targets)
    raise PlanError(
        f"no plan meets {asked}; with {len(globals_)} global layers the smallest reaches {smallest}. Raise "
        "--target-bytes, or put shorter ones among search.sliding_windows"
    )


def smallest_bytes(space: PlanSpace, globals_: frozenset[int]) -> tuple[int, ...]:
    """The least bytes of a sequence of each length that any plan reaches, each length by itself."""
    chain = _chain(space, globals_)
    return _least_bytes(space, [list(space.options(chain, i, globals_)) for i in range(len(chain))])[0]


def neighbours(
    space: PlanSpace, globals_: frozenset[int], targets: Sequence[ByteTarget], solution: Solution
) -> list[Solution]:
    """The best plans without one of this plan's folded banks each, cheapest first."""
    found = []
    for option in solution.options:
        folded = len(option.layers) > 1 or option.num_key_value_heads != space.shape.num_key_value_heads
        without = replace(space, forbidden=space.forbidden | {option.layers})
        found += front(without, globals_, targets)[-1:] if folded else []
    unique = {other.options: other for other in found if other.options != solution.options}
    return sorted(unique.values(), key=lambda other: (other.cost, other.kv_bytes))


def refine(
    space: PlanSpace,
    globals_: frozenset[int],
    targets: Sequence[ByteTarget],
    measure: MeasurePlan,
) -> Candidate:
    """Measure the chosen plan, then neighbours of the best one so far, `settings.plans` plans in all.

    Raises:
        PlanError: no plan meets the targets.
    """
    best = _measured(choose_banks(space, globals_, targets), measure)
    tried = {best.solution.options}
    for _ in range(space.settings.plans - 1):
        others = neighbours(space, globals_, targets, best.solution)
        untried = [other for other in others if other.options not in tried]
        if not untried:
            break
        tried.add(untried[0].options)
        other = _measured(untried[0], measure)
        best = min(best, other, key=lambda candidate: score(space, candidate.cost))
    return best


def score(space: PlanSpace, cost: Cost) -> float:
    """What is minimised, of a measured plan: nat."""
    return cost.kl + space.settings.retrieval_weight * cost.loss(space.table.unfolded_nll)


def by_size(plans: Sequence[Solution]) -> list[Solution]:
    """Growing in bytes of the last length, each plan cheaper in nat than all smaller ones."""
    kept: list[Solution] = []
    for plan in sorted(plans, key=lambda plan: (plan.kv_bytes[-1], plan.cost)):
        if not kept or plan.cost < kept[-1].cost:
            kept.append(plan)
    return kept


def smallest_below(plans: Sequence[Solution], max_kl: float, limit: int, measure: MeasurePlan) -> Candidate:
    """The smallest plan whose measured KL is at most `max_kl`, by bisection.

    Args:
        plans: as `by_size` gives them.
        max_kl: nat a token.
        limit: plans that are measured at most; the largest one is the last resort.
        measure: a whole plan.

    Raises:
        PlanError: none of the measured ones is; the lowest KL is named.
    """
    below, above, ratio = len(plans), -1, 1.0
    best: Candidate | None = None
    lowest = float("inf")
    for left in range(limit, 0, -1):
        if below - above <= 1:
            break
        guess = next((i for i, plan in enumerate(plans) if plan.kl * ratio <= max_kl), len(plans))
        index = min(max(guess, above + 1), below - 1)
        if left == 1 and best is None:
            index = len(plans) - 1
        found = _measured(plans[index], measure)
        lowest = min(lowest, found.cost.kl)
        ratio = found.cost.kl / plans[index].kl if plans[index].kl > 0 else ratio
        if found.cost.kl <= max_kl:
            best, below = found, index
        else:
            above = index
    if best is None:
        raise PlanError(
            f"no measured plan stays at {max_kl:g} nat a token; the lowest KL is {lowest:.4g}. Raise "
            "--max-kl or --target-bytes, or measure more plans (search.plans)"
        )
    return best


def _chain(space: PlanSpace, globals_: frozenset[int]) -> list[int]:
    """Layers in the order in which banks are chosen: those of a bank stand together."""
    return [*sorted(globals_), *(i for i in range(space.shape.num_hidden_layers) if i not in globals_)]


def _least_bytes(space: PlanSpace, options: Sequence[Sequence[Option]]) -> list[tuple[int, ...]]:
    """For each position of a chain, the least bytes of each length that the layers from there on take."""
    least = [(0,) * len(space.lengths) for _ in range(len(options) + 1)]
    for start in reversed(range(len(options))):
        every = (_add(o.kv_bytes, least[start + len(o.layers)]) for o in options[start])
        least[start] = tuple(map(min, zip(*every, strict=True)))
    return least


def _add(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(sum, zip(one, other, strict=True)))


def _meets(kv_bytes: tuple[int, ...], targets: Sequence[ByteTarget]) -> bool:
    return all(target.holds(held) for target, held in zip(targets, kv_bytes, strict=False))


def _measured(solution: Solution, measure: MeasurePlan) -> Candidate:
    return Candidate(solution, measure(solution))


@dataclass(frozen=True)
class _State:
    """The cheapest banks found for the first layers of a chain."""

    cost: float
    kv_bytes: tuple[int, ...]
    option: Option | None = None
    before: _State | None = None

    def path(self) -> Iterator[Option]:
        """Its banks, first to last."""
        if self.before is not None and self.option is not None:
            yield from self.before.path()
            yield self.option


def _undominated(states: list[_State]) -> list[_State]:
    """Without those that another one matches or beats in cost and in every length's bytes."""
    kept: list[_State] = []
    held = np.empty((len(states), len(states[0].kv_bytes) if states else 0), dtype=np.int64)
    for state in sorted(states, key=lambda state: (state.cost, state.kv_bytes)):
        if not (held[: len(kept)] <= state.kv_bytes).all(axis=1).any():
            held[len(kept)] = state.kv_bytes
            kept.append(state)
    return kept
