"""Tables of an evaluation for the terminal, and its figures in words."""

from __future__ import annotations

from rich.table import Table

from kvfold.pipeline.quality.evaluate.evaluation import (
    BFLOAT16,
    Divergences,
    Evaluation,
    LastWords,
    Perplexity,
    RetrievalCell,
)
from kvfold.pipeline.quality.intervals import CONFIDENCE, Estimate
from kvfold.pipeline.quality.validate.measurements import ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.show.tables import make_table
from kvfold.pipeline.studies.cost import Cost

SUBJECTS = (ORIGINAL, FOLDED, ENGINE)
TITLES = {BFLOAT16: "bfloat16"}


def evaluation_tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """Perplexity, divergence, retrieval cell by cell and pooled, last words; each fits 80 columns."""
    return (
        perplexity_table(evaluation.perplexity, evaluation.text),
        divergence_table(evaluation.divergences),
        retrieval_table(evaluation.retrieval, evaluation.window),
        retrieval_share_table(evaluation),
        last_words_table(evaluation.last_words),
    )


def perplexity_table(rows: tuple[Perplexity, ...], text: str) -> Table:
    """A row for each window length and subject; ratios are of the same windows."""
    title = f"Perplexity ({CONFIDENCE:.0%} intervals here and below); text: {text}"
    table = make_table(title, "tokens", "windows", "", "perplexity", "over the original's")
    for row in rows:
        for name in SUBJECTS:
            first = [f"{row.length:,}", str(row.windows)] if name == ORIGINAL else ["", ""]
            ratio = format_estimate(row.ratios[name], ".3f") if name in row.ratios else ""
            table.add_row(*first, name, format_estimate(row.subjects[name], ".2f"), ratio)
    return table


def divergence_table(found: Divergences) -> Table:
    """A row for each candidate; the original in bfloat16 is the floor that rounding alone has."""
    title = f"Against the original, {found.tokens:,} tokens in windows of {found.length:,}"
    table = make_table(title, "", "KL mean", "median", "p99", "flips")
    for row in found.candidates:
        values = [f"{estimate.value:.2g}" for estimate in (row.kl_median, row.kl_p99)]
        name = TITLES.get(row.candidate, row.candidate)
        table.add_row(name, format_estimate(row.kl_mean, ".2g"), *values, format_estimate(row.flips, ".1%"))
    return table


def retrieval_table(cells: tuple[RetrievalCell, ...], window: int | None) -> Table:
    """A row for each task, length and depth: share of codes that came back right, and nat per code."""
    reach = "all layers are global" if window is None else f"the smallest window is {window:,} tokens"
    title = f"Retrieval, accuracy and nat per code; {reach}"
    table = make_table(title, "task", "tokens", "depth", "", *SUBJECTS)
    for cell in cells:
        scores = [cell.subjects[name] for name in SUBJECTS]
        table.add_row(
            cell.task,
            f"{cell.length:,}",
            f"{cell.depth:g}",
            "inside" if cell.inside else "outside",
            *(f"{score.accuracy.value:.0%}  {score.nll.value:6.2f}" for score in scores),
        )
    return table


def retrieval_share_table(evaluation: Evaluation) -> Table:
    """Inside and outside of the window, all lengths and depths together."""
    table = make_table("Retrieval, all lengths and depths", "task", "", "prompts", *SUBJECTS)
    for row in evaluation.retrieval_shares():
        shares = (format_estimate(row.subjects[name], ".0%") for name in SUBJECTS)
        table.add_row(row.task, "inside" if row.inside else "outside", str(row.trials), *shares)
    return table


def last_words_table(found: LastWords) -> Table:
    """Accuracy and likelihood of the last words."""
    title = f"Last words, {found.passages:,} passages; text: {found.text}"
    table = make_table(title, "", "accuracy", "nat per word")
    for name in SUBJECTS:
        score = found.subjects[name]
        table.add_row(name, format_estimate(score.accuracy, ".0%"), format_estimate(score.nll, ".2f"))
    return table


def describe_cost(cost: Cost, text: str) -> str:
    """How it was measured, on a text named `text`, and what the original reaches there."""
    original = format_estimate(cost.perplexity.subjects[ORIGINAL], ".2f")
    return (
        f"original's perplexity {original}, {CONFIDENCE:.0%} intervals; "
        f"{cost.perplexity.windows} windows of {cost.perplexity.length:,} tokens "
        f"({cost.divergences.tokens:,} for KL); text: {text}"
    )


def format_estimate(estimate: Estimate, form: str) -> str:
    """`1.023 (1.019, 1.028)`; the value alone where there is no interval."""
    value = format(estimate.value, form)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({format(estimate.low, form)}, {format(estimate.high, form)})"
