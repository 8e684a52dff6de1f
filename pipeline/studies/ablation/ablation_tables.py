"""The ways to merge heads as tables: two for a terminal, or one with everything."""

from __future__ import annotations

from kvfold.pipeline.quality.format_estimate import format_estimate
from kvfold.pipeline.show.table import Table
from kvfold.pipeline.studies.ablation.ablation_results import Ablation
from kvfold.pipeline.studies.describe_cost import describe_cost


def ablation_tables(ablation: Ablation) -> tuple[Table, Table]:
    """With and without least squares."""
    return (
        _table(ablation, "Least squares around each", regressed=True),
        _table(
            ablation,
            "Pretrained weights and the method's algebra alone",
            regressed=False,
            note=describe(ablation),
        ),
    )


def _table(ablation: Ablation, title: str, regressed: bool, note: str = "") -> Table:
    return Table.of(
        title,
        ("", "perplexity", "over the original's", "KL mean"),
        (
            (
                row.method,
                f"{row.cost.folded.value:.4g}",
                format_estimate(row.cost.ratio, ".4g"),
                format_estimate(row.cost.kl, ".2g"),
            )
            for row in ablation.rows
            if row.regressed == regressed
        ),
        note,
    )


def whole_ablation_table(ablation: Ablation) -> Table:
    """Everything in one table, as wide as a page, and how it came about."""
    return Table.of(
        "",
        ("", "least squares", "perplexity", "over the original's", "KL mean, nat"),
        (
            (
                row.method,
                "yes" if row.regressed else "no",
                format_estimate(row.cost.folded, ".4g"),
                format_estimate(row.cost.ratio, ".4g"),
                format_estimate(row.cost.kl, ".3g"),
            )
            for row in ablation.rows
        ),
        describe(ablation),
    )


def describe(ablation: Ablation) -> str:
    """What was folded and on what it was measured."""
    measured = describe_cost(ablation.rows[0].cost, ablation.text)
    return f"Recipe {ablation.recipe}, float, not healed; {measured}."
