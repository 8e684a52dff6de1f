"""What a search measured, in tables and words: why the plan is as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvfold.export.search.choose import Candidate
from kvfold.export.search.costs import Cost, is_adjacent
from kvfold.export.search.space import Option, PlanSpace
from kvfold.pipeline.show.table import Cell, Table
from kvfold.pipeline.studies.search.found import Found

NOTE = (
    "A cell: KL to the unfolded model in nat a token of text, then by how much the NLL of an answer grows, "
    "in nat; in closed form, before any healing; -: no plan would use it, so it was not measured. "
    "Chosen: window x KV heads, * for a float cache; or whose KV it reads."
)


def search_tables(found: Found) -> tuple[Table, ...]:
    """What each layer costs to change, which are global, whole plans."""
    return (
        cost_table(found),
        window_table(found),
        *([distant_table(found.space)] if found.space.share_distant_globals else []),
        plans_table(found),
    )


def describe_globals(found: Found) -> str:
    """Which layers are global, what that gives, and what to change where more would give more."""
    space, horizons = found.space, found.horizons
    globals_ = ", ".join(map(str, sorted(horizons.globals_))) or "none"
    answers = (
        f"Global layers: {globals_}. An answer's NLL when all others see {space.settings.measured_window} "
        f"tokens: {horizons.nll:.2f} nat, unfolded {space.table.unfolded_nll:.2f}."
    )
    if horizons.nll > space.table.unfolded_nll + space.settings.max_retrieval_loss:
        answers += (
            " More of them would answer better, and cost more elsewhere: raise --target-bytes, or "
            f"search.retrieval_weight ({space.settings.retrieval_weight:g})."
        )
    return answers


def cost_table(found: Found) -> Table:
    """A row for each layer; a bank stands in the row of its first layer. What the plan does is good."""
    space = found.space
    options = {layer: option for option in found.solution.options for layer in option.layers}
    return Table.of(
        "What changing a layer costs, each change alone",
        ("layer", "one head", "with next", "with next 2", "int8", "chosen"),
        (
            (
                str(layer),
                *(_bank_cell(space, tuple(range(layer, layer + size)), options[layer]) for size in (1, 2, 3)),
                _cell(space, space.table.int8[layer], options[layer].kv_dtype == "int8"),
                _choice(options[layer], layer),
            )
            for layer in range(space.shape.num_hidden_layers)
        ),
        NOTE,
    )


def window_table(found: Found) -> Table:
    """A row for each layer, a column for each window, the plan's is good; then the global layers."""
    space, windows = found.space, found.space.settings.sliding_windows
    chosen = {layer: option.sliding_window for option in found.solution.options for layer in option.layers}
    return Table.of(
        "What a window costs, each layer alone",
        ("layer", *(f"{window:,} tokens" for window in windows)),
        (
            (
                str(layer),
                *(
                    _cell(space, space.table.windowed.get((layer, window)), window == chosen[layer])
                    for window in windows
                ),
            )
            for layer in range(space.shape.num_hidden_layers)
        ),
        describe_globals(found),
    )


def distant_table(space: PlanSpace) -> Table:
    """Banks of global layers over the layers between them."""
    distant = ((layers, cost) for layers, cost in space.table.banks.items() if not is_adjacent(layers))
    return Table.of(
        "Global layers that share over others",
        ("layers", "cost"),
        ((", ".join(map(str, layers)), _cell(space, cost, chosen=False)) for layers, cost in distant),
    )


def plans_table(found: Found) -> Table:
    """Every whole plan that was measured; the chosen one is good."""
    sizes = (f"bytes@{length:,}" for length in found.space.lengths)
    return Table.of(
        "Whole plans, folded in closed form, before any healing; KV bytes a token at each length",
        ("banks", *sizes, "KL predicted", "measured", "answer NLL"),
        (
            _marked(_plan_cells(found.space, candidate), candidate.solution == found.solution)
            for candidate in found.plans
        ),
    )


def _plan_cells(space: PlanSpace, candidate: Candidate) -> Iterator[str]:
    solution, cost = candidate.solution, candidate.cost
    yield str(len(solution.options))
    for kv_bytes, length in zip(solution.kv_bytes, space.lengths, strict=True):
        yield f"{kv_bytes / length:,.1f}"
    yield f"{solution.kl:.3f}"
    yield f"{cost.kl:.3f}"
    yield "-" if cost.nll is None else f"{cost.nll:.2f}"


def _marked(cells: Iterable[str], chosen: bool) -> Iterator[Cell]:
    return (Cell(cell, "good" if chosen else None) for cell in cells)


def _bank_cell(space: PlanSpace, layers: tuple[int, ...], option: Option) -> Cell:
    folded = len(layers) > 1 or option.num_key_value_heads < space.shape.num_key_value_heads
    cost = None if layers in space.table.guessed else space.table.banks.get(layers)
    return _cell(space, cost, folded and option.layers == layers)


def _cell(space: PlanSpace, cost: Cost | None, chosen: bool) -> Cell:
    """`0.024 +1.3`."""
    if cost is None:
        return Cell("-", "faint")
    answers = "" if cost.nll is None else f" {cost.nll - space.table.unfolded_nll:+.1f}"
    return Cell(f"{cost.kl:.3f}{answers}", "good" if chosen else None)


def _choice(option: Option, layer: int) -> str:
    """`global x1`, `128 x3*`, `reads 17`."""
    if layer != option.layers[0]:
        return f"reads {option.layers[0]}"
    horizon = "global" if option.sliding_window is None else f"{option.sliding_window}"
    wide = "" if option.kv_dtype == "int8" else "*"
    return f"{horizon} x{option.num_key_value_heads}{wide}"
