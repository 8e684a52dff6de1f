"""A validation's tables: candidates against the original, the engine against what it was built from."""

from __future__ import annotations

from kvfold.pipeline.quality.subject_names import ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.quality.validate.measurements import (
    KL_BIN_EDGES,
    PAIRS,
    Comparison,
    Measurements,
    SubjectResult,
    Verdict,
)
from kvfold.pipeline.quality.validate.quality_tables import full_quality_table, quality_table, verdict_table
from kvfold.pipeline.show.table import Cell, Table

MEASUREMENTS = Measurements(
    text="a.txt",
    tokens=2048,
    sequence_length=1024,
    reused_tokens=100,
    subjects={
        name: SubjectResult(perplexity=perplexity, tokens_per_second=1)
        for name, perplexity in ((ORIGINAL, 16.0), (FOLDED, 17.0), (ENGINE, 18.0))
    },
    comparisons=tuple(
        Comparison(
            reference=reference,
            candidate=candidate,
            kl_mean=0.0125,
            kl_median=0.01,
            kl_p99=0.2,
            kl_max=1.5,
            kl_histogram=(1,) * (len(KL_BIN_EDGES) + 1),
            top1_agreement=0.9375,
            max_logit_difference=0.5,
        )
        for reference, candidate in PAIRS
    ),
)


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_perplexity_is_told_once_for_each_subject() -> None:
    table = quality_table(MEASUREMENTS)
    assert table.title == "2,048 tokens in sequences of 1,024; text: a.txt"
    on_gpu = MEASUREMENTS.model_copy(update={"gpu": "A card"})
    assert quality_table(on_gpu).title == f"{table.title}; engine on A card"
    assert texts(table) == [
        ["original", "16.000", "", "", "", ""],
        ["folded", "17.000", "0.013", "0.01", "0.2", "93.75%"],
        ["engine", "18.000", "0.013", "0.01", "0.2", "93.75%"],
        ["engine against folded", "", "0.013", "0.01", "0.2", "93.75%"],
    ]


def test_the_full_table_has_the_extremes_too() -> None:
    rows = texts(full_quality_table(MEASUREMENTS))
    assert rows[0] == ["original", "16.000", *[""] * 6]
    assert rows[3][2:] == ["1.25e-02", "1.00e-02", "2.00e-01", "1.50e+00", "93.75 %", "5.00e-01"]


def test_a_missed_threshold_is_bad() -> None:
    verdicts = [
        Verdict(threshold="max_kl", meaning="mean KL", measured=0.0125, limit=limit, passed=limit > 0.0125)
        for limit in (0.02, 0.01)
    ]
    met, missed = verdict_table(verdicts).rows
    assert [cell.text for cell in met] == ["mean KL", "0.0125", "0.02", "met"]
    assert (met[-1], missed[-1]) == (Cell("met", "good"), Cell("MISSED", "bad"))
