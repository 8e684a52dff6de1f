"""A ladder as tables: two for a terminal, or one with everything."""

from __future__ import annotations

from kvfold.pipeline.quality.format_estimate import format_estimate
from kvfold.pipeline.show.table import Cell, Table
from kvfold.pipeline.studies.describe_cost import describe_cost
from kvfold.pipeline.studies.frontier.rungs import Frontier, Rung
from kvfold.plugins.contract.byte_sizes import format_bytes

STATED_CONTEXTS = (2048, 8192)
NOTE = "Bold: no other rung is both smaller and nearer to the original."


def frontier_tables(frontier: Frontier) -> tuple[Table, Table]:
    """KV bytes, then what they cost."""
    contexts = (f"{length:,} tokens" for length in STATED_CONTEXTS)
    sizes = ("", *(cell for context in contexts for cell in (context, "smaller")))
    costs = ("", "perplexity", "over the original's", "KL mean")
    return (
        Table.of(
            "KV cache of one sequence",
            sizes,
            (_marked(frontier, rung, [rung.recipe, *_size_cells(rung)]) for rung in frontier.rungs),
        ),
        Table.of(
            describe(frontier),
            costs,
            (_marked(frontier, rung, [rung.recipe, *_cost_cells(rung)]) for rung in frontier.rungs),
            NOTE,
        ),
    )


def whole_frontier_table(frontier: Frontier) -> Table:
    """Everything in one table, as wide as a page, and how it came about."""
    contexts = (f"KV at {length:,} tokens" for length in STATED_CONTEXTS)
    sizes = (cell for context in contexts for cell in (context, "smaller"))
    return Table.of(
        "",
        ("", *sizes, "perplexity", "over the original's", "KL mean, nat"),
        (
            [*_marked(frontier, rung, [rung.recipe]), *_size_cells(rung), *_cost_cells(rung)]
            for rung in frontier.rungs
        ),
        f"{describe(frontier)}. KV: resident bytes of one sequence with the plan's cache types, "
        "beside bf16 of the unfolded model; perplexity and KL are the float fold's, without what int8 adds. "
        + NOTE,
    )


def describe(frontier: Frontier) -> str:
    """What perplexity and KL were measured on."""
    return f"Float fold; {describe_cost(frontier.rungs[0].cost, frontier.text)}"


def _marked(frontier: Frontier, rung: Rung, cells: list[str]) -> list[Cell]:
    return [Cell(cell, "strong" if rung in frontier.best else None) for cell in cells]


def _size_cells(rung: Rung) -> list[str]:
    found = [rung.kv(length) for length in STATED_CONTEXTS]
    return [cell for row in found for cell in (format_bytes(row.folded), f"{row.reduction:.1f} x")]


def _cost_cells(rung: Rung) -> list[str]:
    cost = rung.cost
    return [
        format_estimate(cost.folded, "#.4g"),
        format_estimate(cost.ratio, "#.4g"),
        format_estimate(cost.kl, ".2g"),
    ]
