"""A ladder as tables, for the terminal and in Markdown."""

from __future__ import annotations

from rich.table import Table

from kvfold.pipeline.quality.evaluate.evaluation_tables import describe_cost, format_estimate
from kvfold.pipeline.show.tables import make_table, markdown_table
from kvfold.pipeline.studies.frontier.rungs import Frontier, Rung
from kvfold.plugins.contract.kv_bytes import format_bytes

STATED_CONTEXTS = (2048, 8192)


def frontier_tables(frontier: Frontier) -> tuple[Table, Table]:
    """KV bytes, then what they cost; each fits 80 columns."""
    contexts = (f"{length:,} tokens" for length in STATED_CONTEXTS)
    size = make_table("KV cache of one sequence", "", *(cell for c in contexts for cell in (c, "smaller")))
    cost = make_table(describe(frontier), "", "perplexity", "over the original's", "KL mean")
    for rung in frontier.rungs:
        style = "bold" if rung in frontier.best else ""
        size.add_row(rung.recipe, *_size_cells(rung), style=style)
        cost.add_row(rung.recipe, *_cost_cells(rung), style=style)
    cost.caption = "Bold: no other rung is both smaller and nearer to the original."
    cost.caption_justify = "left"
    return size, cost


def write_markdown(frontier: Frontier) -> str:
    """One table, and how it came about."""
    contexts = (f"KV at {length:,} tokens" for length in STATED_CONTEXTS)
    columns = ["", *(cell for c in contexts for cell in (c, "smaller"))]
    columns += ["perplexity", "over the original's", "KL mean, nat"]
    rows = [
        [
            f"**{rung.recipe}**" if rung in frontier.best else rung.recipe,
            *_size_cells(rung),
            *_cost_cells(rung),
        ]
        for rung in frontier.rungs
    ]
    notes = (
        f"{describe(frontier)}. KV: resident bytes of one sequence with the plan's cache types, "
        "beside bf16 of the unfolded model; perplexity and KL are the float fold's, without what int8 adds. "
        "Bold: no other rung is both smaller and nearer to the original.\n"
    )
    return f"{markdown_table(columns, rows)}\n{notes}"


def describe(frontier: Frontier) -> str:
    """What perplexity and KL were measured on."""
    return f"Float fold; {describe_cost(frontier.rungs[0].cost, frontier.text)}"


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
