"""`report/<target>/index.html`: it loads nothing, says what was compared, and lists what went wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markupsafe import escape

from kvfold.pipeline.quality.validate.quality_tables import full_quality_table, verdict_table
from kvfold.pipeline.report.report_page import render_page
from kvfold.pipeline.report.report_results import Results, page_file, read_results
from kvfold.pipeline.report.report_tables import WORST_SHOWN, fold_error_table
from kvfold.pipeline.show.cache_tables import kv_bytes_table
from tests.pipeline.tiny_bundles import RECIPE, run_recipe


@pytest.fixture
def results(small_bundle: Path) -> Results:
    return read_results(small_bundle)


def test_it_is_self_contained(small_bundle: Path) -> None:
    page = (small_bundle / page_file("cpu")).read_text()
    assert page.count("<svg") == 3
    for outside in ("http://", "https://", "<script", "<link", "@import", "url("):
        assert outside not in page


def test_it_says_what_was_compared(small_bundle: Path) -> None:
    page = " ".join((small_bundle / page_file("cpu")).read_text().split())
    assert "384 tokens in sequences of 192; text: text.txt" in page


def test_its_tables_are_those_of_the_rooms(results: Results) -> None:
    page = render_page(results)
    for table in (
        full_quality_table(results.measurements),
        verdict_table(results.verdicts),
        kv_bytes_table(results.kv_bytes),
        fold_error_table(results.fold_errors),
    ):
        assert all(f"<th>{escape(column)}</th>" in page for column in table.columns)
        assert all(f">{escape(cell.text)}</td>" in page for row in table.rows for cell in row)


def test_thresholds_are_marked_and_none_are_said_to_be_none(results: Results) -> None:
    (verdict,) = results.verdicts
    missed = verdict.model_copy(update={"passed": False})
    page = render_page(results.model_copy(update={"verdicts": (verdict, missed)}))
    assert '<td class="bad">MISSED</td>' in page and '<td class="good">met</td>' in page
    assert "none set" in render_page(results.model_copy(update={"verdicts": ()}))


def test_the_worst_layers_come_first_and_a_bundle_that_folds_nothing_has_none(results: Results) -> None:
    errors = {layer: layer / 100 for layer in range(20)}
    rows = fold_error_table(errors).rows
    assert [row[0].text for row in rows] == [str(layer) for layer in range(19, 19 - WORST_SHOWN, -1)]
    assert "worst layers" not in render_page(results.model_copy(update={"fold_errors": {}}))


def test_it_lists_linears_that_int8_harms(recipes: Path) -> None:
    """With a limit of nearly nothing, every linear is listed, with its precision and error, worst first."""
    (recipes / "harmed.yaml").write_text(
        RECIPE % ("character", "int8, max_relative_error: 1.0e-7, max_weight_error: 1.0e-7", 0.05, "null")
    )
    run_recipe(recipes, "harmed", recipes / "harmed")
    quantization = read_results(recipes / "harmed").quantization
    page = (recipes / "harmed" / page_file("cpu")).read_text()
    assert quantization.summary in page
    rows = re.findall(r"<tr><td>([\w.]+)</td><td>(\w+)</td>\s*<td>([\d.]+)</td>", page)
    measured = {name: linear.relative_error for name, linear in quantization.linears.items()}
    worst_first = sorted(measured, key=lambda name: -(measured[name] or 0))
    assert rows == [(name, "float32", f"{measured[name]:.3f}") for name in worst_first]
