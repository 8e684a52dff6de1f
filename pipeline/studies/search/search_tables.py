"""What a search measured, in the terminal: why the plan is as it is."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kvfold.export.search.costs import Cost, is_adjacent
from kvfold.export.search.space import Option, PlanSpace
from kvfold.pipeline.show.tables import make_table
from kvfold.pipeline.studies.search.search import Found

CHOSEN = "bold green"
CAPTION = """\
A cell: KL to the unfolded model in nat a token of text, then by how much the NLL
of an answer grows, in nat; in closed form, before any healing; -: no plan would
use it, so it was not measured. Chosen: window x KV heads, * for a float cache; or
whose KV it reads."""


def search_tables(found: Found) -> tuple[RenderableType, ...]:
    """What each layer costs to change, which are global, whole plans; each fits 80 columns."""
    space, horizons = found.space, found.horizons
    globals_ = ", ".join(map(str, sorted(horizons.globals_))) or "none"
    answers = (
        f"\nGlobal layers: {globals_}. An answer's NLL when all others see "
        f"{space.settings.measured_window} tokens:\n{horizons.nll:.2f} nat, "
        f"unfolded {space.table.unfolded_nll:.2f}."
    )
    if horizons.nll > space.table.unfolded_nll + space.settings.max_retrieval_loss:
        answers += (
            " More of them would answer better, and cost more elsewhere:\nraise --target-bytes, or "
            f"search.retrieval_weight ({space.settings.retrieval_weight:g})."
        )
    return (
        cost_table(found),
        CAPTION,
        window_table(found),
        *([distant_table(space)] if space.share_distant_globals else []),
        answers,
        plans_table(found),
    )


def cost_table(found: Found) -> Table:
    """A row for each layer; a bank stands in the row of its first layer. What the plan does is green."""
    space = found.space
    table = make_table(
        "What changing a layer costs, each change alone",
        *("layer", "one head", "with next", "with next 2", "int8", "chosen"),
    )
    options = {layer: option for option in found.solution.options for layer in option.layers}
    for layer in range(space.shape.num_hidden_layers):
        option = options[layer]
        table.add_row(
            str(layer),
            *(_bank_cell(space, tuple(range(layer, layer + size)), option) for size in (1, 2, 3)),
            _cell(space, space.table.int8[layer], option.kv_dtype == "int8"),
            _choice(option, layer),
        )
    return table


def window_table(found: Found) -> Table:
    """A row for each layer, a column for each window, the plan's in green."""
    space, windows = found.space, found.space.settings.sliding_windows
    table = make_table("What a window costs, each layer alone", "layer", *(f"{w:,} tokens" for w in windows))
    chosen = {layer: option.sliding_window for option in found.solution.options for layer in option.layers}
    for layer in range(space.shape.num_hidden_layers):
        cells = (_cell(space, space.table.windowed[layer, w], w == chosen[layer]) for w in windows)
        table.add_row(str(layer), *cells)
    return table


def distant_table(space: PlanSpace) -> Table:
    """Banks of global layers over the layers between them."""
    table = make_table("Global layers that share over others", "layers", "cost")
    for layers, cost in space.table.banks.items():
        if not is_adjacent(layers):
            table.add_row(", ".join(map(str, layers)), _cell(space, cost, chosen=False))
    return table


def plans_table(found: Found) -> Table:
    """Every whole plan that was measured, the chosen one in green."""
    space = found.space
    title = "Whole plans, folded in closed form, before any healing; KV bytes a token at each length"
    sizes = [f"bytes@{length:,}" for length in space.lengths]
    table = make_table(title, "banks", *sizes, "KL predicted", "measured", "answer NLL")
    for candidate in found.plans:
        solution, cost = candidate.solution, candidate.cost
        held = (
            f"{kv_bytes / length:,.1f}"
            for kv_bytes, length in zip(solution.kv_bytes, space.lengths, strict=True)
        )
        table.add_row(
            *_styled(
                (
                    str(len(solution.options)),
                    *held,
                    f"{solution.kl:.3f}",
                    f"{cost.kl:.3f}",
                    "-" if cost.nll is None else f"{cost.nll:.2f}",
                ),
                solution == found.solution,
            )
        )
    return table


def _styled(cells: Iterable[str], chosen: bool) -> Iterable[Text]:
    return (Text(cell, style=CHOSEN if chosen else "") for cell in cells)


def _bank_cell(space: PlanSpace, layers: tuple[int, ...], option: Option) -> Text:
    folded = len(layers) > 1 or option.num_key_value_heads < space.shape.num_key_value_heads
    cost = None if layers in space.table.guessed else space.table.banks.get(layers)
    return _cell(space, cost, folded and option.layers == layers)


def _cell(space: PlanSpace, cost: Cost | None, chosen: bool) -> Text:
    """`0.024 +1.3`."""
    if cost is None:
        return Text("-", style="dim")
    answers = "" if cost.nll is None else f" {cost.nll - space.table.unfolded_nll:+.1f}"
    text = f"{cost.kl:.3f}{answers}"
    return Text(text, style=CHOSEN if chosen else "")


def _choice(option: Option, layer: int) -> str:
    """`global x1`, `128 x3*`, `reads 17`."""
    if layer != option.layers[0]:
        return f"reads {option.layers[0]}"
    horizon = "global" if option.sliding_window is None else f"{option.sliding_window}"
    wide = "" if option.kv_dtype == "int8" else "*"
    return f"{horizon} x{option.num_key_value_heads}{wide}"
