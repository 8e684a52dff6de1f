"""The ways to merge heads as tables, for the terminal and in Markdown."""

from __future__ import annotations

from rich.table import Table

from kvfold.pipeline.quality.evaluate.evaluation_tables import describe_cost, format_estimate
from kvfold.pipeline.show.tables import make_table, markdown_table
from kvfold.pipeline.studies.ablation.ablation_results import Ablation

TITLES = {
    True: "Least squares around each",
    False: "Pretrained weights and the method's algebra alone",
}


def ablation_tables(ablation: Ablation) -> tuple[Table, ...]:
    """With and without least squares; each fits 80 columns."""
    tables = []
    for regressed, title in TITLES.items():
        table = make_table(title, "", "perplexity", "over the original's", "KL mean")
        for row in ablation.rows:
            if row.regressed == regressed:
                estimates = format_estimate(row.cost.ratio, ".4g"), format_estimate(row.cost.kl, ".2g")
                table.add_row(row.method, f"{row.cost.folded.value:.4g}", *estimates)
        tables.append(table)
    tables[-1].caption = describe(ablation)
    tables[-1].caption_justify = "left"
    return tuple(tables)


def write_markdown(ablation: Ablation) -> str:
    """One table, and how it came about."""
    columns = ["", "least squares", "perplexity", "over the original's", "KL mean, nat"]
    rows = [
        [
            row.method,
            "yes" if row.regressed else "no",
            format_estimate(row.cost.folded, ".4g"),
            format_estimate(row.cost.ratio, ".4g"),
            format_estimate(row.cost.kl, ".3g"),
        ]
        for row in ablation.rows
    ]
    return f"{markdown_table(columns, rows)}\n{describe(ablation)}\n"


def describe(ablation: Ablation) -> str:
    """What was folded and on what it was measured."""
    measured = describe_cost(ablation.rows[0].cost, ablation.text)
    return f"Recipe {ablation.recipe}, float, not healed; {measured}."
