"""Tables of a validation: the subjects against each other, and the recipe's thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvfold.pipeline.quality.subject_names import ORIGINAL
from kvfold.pipeline.quality.validate.measurements import PAIRS, Comparison, Measurements, Verdict
from kvfold.pipeline.show.table import Cell, Table


def quality_table(measurements: Measurements) -> Table:
    """Perplexity, KL and agreement of folded model and engine against the original."""
    engine = f"; engine on {measurements.gpu}" if measurements.gpu else ""
    return Table.of(
        f"{measurements.tokens:,} tokens in sequences of {measurements.sequence_length:,}; "
        f"text: {measurements.text}{engine}",
        ("", "perplexity", "KL mean", "median", "p99", "top-1"),
        (
            (ORIGINAL, f"{measurements.subjects[ORIGINAL].perplexity:.3f}", "", "", "", ""),
            *(
                (
                    *labels,
                    *(f"{value:.2g}" for value in (pair.kl_mean, pair.kl_median, pair.kl_p99)),
                    f"{pair.top1_agreement:.2%}",
                )
                for labels, pair in _pairs(measurements)
            ),
        ),
    )


def full_quality_table(measurements: Measurements) -> Table:
    """The same with the extremes, as wide as a page."""
    return Table.of(
        "Quality",
        ("", "perplexity", "KL mean", "KL median", "KL p99", "KL max", "top-1 agreement", "max |Δlogit|"),
        (
            (ORIGINAL, f"{measurements.subjects[ORIGINAL].perplexity:.3f}", *[""] * 6),
            *(
                (
                    *labels,
                    *(f"{kl:.2e}" for kl in (pair.kl_mean, pair.kl_median, pair.kl_p99, pair.kl_max)),
                    f"{100 * pair.top1_agreement:.2f} %",
                    f"{pair.max_logit_difference:.2e}",
                )
                for labels, pair in _pairs(measurements)
            ),
        ),
    )


def _pairs(measurements: Measurements) -> Iterator[tuple[tuple[str, str], Comparison]]:
    """Name and perplexity of each candidate, which is told once, and how far it is from its reference."""
    for reference, candidate in PAIRS:
        labels = f"{candidate} against {reference}", ""
        if reference == ORIGINAL:
            labels = candidate, f"{measurements.subjects[candidate].perplexity:.3f}"
        yield labels, measurements.comparison(reference, candidate)


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Each threshold of the recipe and whether it is met."""
    return Table.of(
        "Thresholds of the recipe",
        ("", "measured", "limit", ""),
        (
            (
                verdict.meaning,
                f"{verdict.measured:.5g}",
                f"{verdict.limit:g}",
                Cell("met", "good") if verdict.passed else Cell("MISSED", "bad"),
            )
            for verdict in verdicts
        ),
    )
