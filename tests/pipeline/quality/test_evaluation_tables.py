"""An evaluation's tables: a row for everything that was measured, figures with their intervals."""

from __future__ import annotations

from kvfold.pipeline.quality.evaluate.evaluation_tables import (
    cost_table,
    divergence_table,
    evaluation_tables,
    last_words_table,
    perplexity_table,
    retrieval_share_table,
    retrieval_table,
    slips_tables,
)
from kvfold.pipeline.show.table import Table
from tests.pipeline.quality.made_up_evaluation import EVALUATION


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_perplexity_names_a_length_once_and_has_no_ratio_of_the_original() -> None:
    table = perplexity_table(EVALUATION.perplexity, EVALUATION.text)
    assert table.title == "Perplexity (95% intervals here and below); text: wiki & co.txt"
    assert texts(table)[:3] == [
        ["64", "16", "original", "16.00 (14.40, 17.60)", ""],
        ["", "", "folded", "17.00 (15.30, 18.70)", "1.050"],
        ["", "", "engine", "18.00 (16.20, 19.80)", "1.100 (0.990, 1.210)"],
    ]
    assert [row[0] for row in texts(table)[3:]] == ["256", "", ""]


def test_divergence_begins_with_the_floor() -> None:
    table = divergence_table(EVALUATION.divergences)
    assert table.title == "Against the original, 1,024 tokens in windows of 256"
    assert [row[0] for row in texts(table)] == ["bfloat16", "folded", "engine"]
    assert texts(table)[2] == ["engine", "0.022 (0.02, 0.024)", "0.011", "0.2", "10.0% (9.0%, 11.0%)"]


def test_retrieval_says_which_codes_stood_outside_of_the_window() -> None:
    table = retrieval_table(EVALUATION.retrieval, EVALUATION.window)
    assert table.title.endswith("the smallest window is 512 tokens")
    assert texts(table)[0] == ["passkey", "1,000", "0.1", "outside", *["25%    1.50"] * 3]
    assert texts(table)[1] == ["passkey", "1,000", "0.9", "inside", *["75%    1.50"] * 3]
    assert retrieval_table((), None).title.endswith("all layers are global")


def test_retrieval_is_pooled_by_task_and_side_of_the_window() -> None:
    rows = texts(retrieval_share_table(EVALUATION))
    assert [row[:3] for row in rows] == [
        ["passkey", "inside", "8"],
        ["passkey", "outside", "8"],
        ["multi-key", "inside", "8"],
        ["multi-key", "outside", "8"],
    ]
    assert all(cell.startswith("75% (") for cell in rows[0][3:])


def test_last_words_have_a_row_for_each_subject() -> None:
    table = last_words_table(EVALUATION.last_words)
    assert table.title == "Last words, 8 passages; text: words.txt"
    assert texts(table)[0] == ["original", "50% (45%, 55%)", "1.50 (1.35, 1.65)"]
    assert len(table.rows) == 3


def test_every_row_has_a_cell_for_each_column() -> None:
    for table in evaluation_tables(EVALUATION):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_slips_are_counted_beside_the_original_s_and_the_worst_are_shown() -> None:
    counts, worst = slips_tables(EVALUATION.slips)
    assert texts(counts) == [
        ["engine, greedy", "200", "2: 1.0% (0.9%, 1.1%)", "13: 6.5% (5.9%, 7.2%)"],
        ["original, greedy", "200", "0: 0.0% (0.0%, 0.0%)", "8: 4.0% (3.6%, 4.4%)"],
        ["original, drawn at 0.7", "200", "30: 15.0% (13.5%, 16.5%)", "120: 60.0% (54.0%, 66.0%)"],
    ]
    assert "below 0.1%" in counts.note and "below 2%" in counts.note
    assert worst.title == "The 10 worst of 13 slips, in brackets"
    assert texts(worst)[0] == ["Hello", "Hello![ I'shine]. I'm here", "0.25%", "[ How] 20%"]


def test_a_model_without_a_chat_template_says_why_it_has_no_slips() -> None:
    (table,) = slips_tables(None)
    assert texts(table) == [["none counted: the model has no chat template"]]


def test_the_parts_tell_their_cpu_seconds() -> None:
    assert texts(cost_table(EVALUATION.cpu_seconds)) == [["comparison", "61"], ["slips", "1,234"]]
