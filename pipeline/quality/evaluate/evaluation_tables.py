"""Tables of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator

from kvfold.pipeline.quality.evaluate.evaluation import (
    AnswerScore,
    Evaluation,
    LastWords,
    RetrievalCell,
    Slip,
    Slips,
)
from kvfold.pipeline.quality.format_estimate import format_estimate
from kvfold.pipeline.quality.intervals import CONFIDENCE
from kvfold.pipeline.quality.likelihood_results import Divergences, Perplexity
from kvfold.pipeline.quality.subject_names import BFLOAT16, ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.show.table import Table

SUBJECTS = (ORIGINAL, FOLDED, ENGINE)
TITLES = {BFLOAT16: "bfloat16"}
SHOWN_SLIPS = 10  # all are in the results


def evaluation_tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """Perplexity, divergence, retrieval cell by cell and pooled, last words, slips, and what it took."""
    return (
        perplexity_table(evaluation.perplexity, evaluation.text),
        divergence_table(evaluation.divergences),
        retrieval_table(evaluation.retrieval, evaluation.window),
        retrieval_share_table(evaluation),
        last_words_table(evaluation.last_words),
        *slips_tables(evaluation.slips),
        cost_table(evaluation.cpu_seconds),
    )


def perplexity_table(rows: tuple[Perplexity, ...], text: str) -> Table:
    """A row for each window length and subject; ratios are of the same windows."""
    return Table.of(
        f"Perplexity ({CONFIDENCE:.0%} intervals here and below); text: {text}",
        ("tokens", "windows", "", "perplexity", "over the original's"),
        (cells for row in rows for cells in _perplexity_rows(row)),
    )


def _perplexity_rows(row: Perplexity) -> Iterator[tuple[str, ...]]:
    for name in SUBJECTS:
        first = (f"{row.length:,}", str(row.windows)) if name == ORIGINAL else ("", "")
        ratio = format_estimate(row.ratios[name], ".3f") if name in row.ratios else ""
        yield *first, name, format_estimate(row.subjects[name], ".2f"), ratio


def divergence_table(found: Divergences) -> Table:
    """A row for each candidate; the original in bfloat16 is the floor that rounding alone has."""
    return Table.of(
        f"Against the original, {found.tokens:,} tokens in windows of {found.length:,}",
        ("", "KL mean", "median", "p99", "flips"),
        (
            (
                TITLES.get(row.candidate, row.candidate),
                format_estimate(row.kl_mean, ".2g"),
                *(f"{estimate.value:.2g}" for estimate in (row.kl_median, row.kl_p99)),
                format_estimate(row.flips, ".1%"),
            )
            for row in found.candidates
        ),
    )


def retrieval_table(cells: tuple[RetrievalCell, ...], window: int | None) -> Table:
    """A row for each task, length and depth: share of codes that came back right, and nat per code."""
    reach = "all layers are global" if window is None else f"the smallest window is {window:,} tokens"
    return Table.of(
        f"Retrieval, accuracy and nat per code; {reach}",
        ("task", "tokens", "depth", "", *SUBJECTS),
        (
            (
                cell.task,
                f"{cell.length:,}",
                f"{cell.depth:g}",
                "inside" if cell.inside else "outside",
                *(_score(cell.subjects[name]) for name in SUBJECTS),
            )
            for cell in cells
        ),
    )


def _score(score: AnswerScore) -> str:
    return f"{score.accuracy.value:.0%}  {score.nll.value:6.2f}"


def retrieval_share_table(evaluation: Evaluation) -> Table:
    """Inside and outside of the window, all lengths and depths together."""
    return Table.of(
        "Retrieval, all lengths and depths",
        ("task", "", "prompts", *SUBJECTS),
        (
            (
                row.task,
                "inside" if row.inside else "outside",
                str(row.trials),
                *(format_estimate(row.subjects[name], ".0%") for name in SUBJECTS),
            )
            for row in evaluation.retrieval_shares()
        ),
    )


def last_words_table(found: LastWords) -> Table:
    """Accuracy and likelihood of the last words."""
    scores = [(name, found.subjects[name]) for name in SUBJECTS]
    return Table.of(
        f"Last words, {found.passages:,} passages; text: {found.text}",
        ("", "accuracy", "nat per word"),
        (
            (name, format_estimate(score.accuracy, ".0%"), format_estimate(score.nll, ".2f"))
            for name, score in scores
        ),
    )


def slips_tables(slips: Slips | None) -> tuple[Table, ...]:
    """How many replies slip, the engine's and the original's own; then the engine's worst."""
    if slips is None:
        return (Table.of("Slips", ("",), [("none counted: the model has no chat template",)]),)
    rows = (
        (f"{ENGINE}, greedy", slips.engine),
        (f"{ORIGINAL}, greedy", slips.original),
        (f"{ORIGINAL}, drawn at {slips.temperature:g}", slips.drawn),
    )
    shown = slips.worst[:SHOWN_SLIPS]
    counts = Table.of(
        f"Slips: replies with what the {ORIGINAL} would hardly have said there",
        ("", "replies", "an unlikely token", "an unlikely word"),
        (
            (
                name,
                f"{count.replies:,}",
                f"{count.tokens:,}: {format_estimate(count.token_share, '.1%')}",
                f"{count.words:,}: {format_estimate(count.word_share, '.1%')}",
            )
            for name, count in rows
        ),
        note=f"Unlikely is a token below {slips.unlikely_token:.1%}, and a word below "
        f"{slips.unlikely_word:.0%} of the likeliest token's chance there.",
    )
    worst = Table.of(
        f"The {len(shown)} worst of {len(slips.worst)} slips, in brackets",
        ("asked", "replied", "chance", "likeliest there"),
        map(_slip_row, shown),
    )
    return (counts, worst) if shown else (counts,)


def _slip_row(slip: Slip) -> tuple[str, ...]:
    before, word, after, likeliest = (
        text.replace("\n", "\\n") for text in (slip.before, slip.word, slip.after, slip.likeliest)
    )
    return (
        slip.opener,
        f"{before[-40:]}[{word}]{after[:10]}",
        f"{100 * slip.chance:.2g}%",
        f"[{likeliest}] {slip.likeliest_chance:.0%}",
    )


def cost_table(cpu_seconds: dict[str, float]) -> Table:
    """What each part of the evaluation took."""
    return Table.of(
        "What measuring it took",
        ("", "CPU s"),
        ((part, f"{spent:,.0f}") for part, spent in cpu_seconds.items()),
    )
