"""What a search measured, in the terminal: why the plan is as it is."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from export.search.costs import Cost
from export.search.space import Option, PlanSpace
from pipeline.plan.search import Found
from pipeline.tables import make_table

CHOSEN = "bold green"
CAPTION = (
    "A cell: KL to the unfolded model in nat a token of text, then what the NLL of a retrieved answer grows\n"
    "by, in nat; both in closed form, before any healing. Windowed: {window} tokens. Green: chosen.\n"
    "Chosen: horizon, KV heads, * for a float cache; or the layer whose KV it reads."
)


def search_tables(found: Found) -> tuple[Table, ...]:
    """What each layer costs to change, which are global, whole plans; each fits 80 columns."""
    return (cost_table(found), plans_table(found))


def cost_table(found: Found) -> Table:
    """A row for each layer; a bank stands in the row of its first layer."""
    space = found.space
    table = make_table(
        "What changing a layer costs, each change alone",
        *("layer", "windowed", "one head", "with next", "with next 2", "int8", "chosen"),
    )
    table.caption = CAPTION.format(window=space.settings.measured_window)
    table.caption_justify = "left"
    options = {layer: option for option in found.solution.options for layer in option.layers}
    for layer in range(space.shape.num_hidden_layers):
        option = options[layer]
        stored = space.shape.num_key_value_heads
        banks = (
            _cell(
                space,
                space.table.banks.get(tuple(range(layer, layer + size))),
                option.layers == tuple(range(layer, layer + size))
                and (size > 1 or option.num_key_value_heads < stored),
            )
            for size in (1, 2, 3)
        )
        table.add_row(
            str(layer),
            _cell(space, space.table.windowed[layer], not option.is_global),
            *banks,
            _cell(space, space.table.int8[layer], option.kv_dtype == "int8"),
            _choice(option, layer),
        )
    return table


def plans_table(found: Found) -> Table:
    """Every whole plan that was measured, the chosen one in green."""
    space = found.space
    globals_ = ", ".join(map(str, sorted(found.horizons.globals_))) or "none"
    title = (
        f"Whole plans, folded in closed form, before any healing; global layers: {globals_}\n"
        f"(an answer's NLL with these alone: {found.horizons.nll:.2f} nat, unfolded "
        f"{space.table.unfolded_nll:.2f})"
    )
    sizes = [f"bytes/token at {length:,}" for length in space.lengths]
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
                    f"{cost.nll:.2f}",
                ),
                solution == found.solution,
            )
        )
    return table


def _styled(cells: Iterable[str], chosen: bool) -> Iterable[Text]:
    return (Text(cell, style=CHOSEN if chosen else "") for cell in cells)


def _cell(space: PlanSpace, cost: Cost | None, chosen: bool) -> Text:
    """`0.024 +1.3`."""
    if cost is None:
        return Text("-", style="dim")
    text = f"{cost.kl:.3f} {cost.nll - space.table.unfolded_nll:+.1f}"
    return Text(text, style=CHOSEN if chosen else "")


def _choice(option: Option, layer: int) -> str:
    """`global x1`, `local x3 float32`, `reads 17`."""
    if layer != option.layers[0]:
        return f"reads {option.layers[0]}"
    horizon = "global" if option.is_global else "local"
    wide = "" if option.kv_dtype == "int8" else "*"
    return f"{horizon} x{option.num_key_value_heads}{wide}"
