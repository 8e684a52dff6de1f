"""`report/<target>/evaluation.html`: every table of the evaluation, and nothing from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from markupsafe import escape

from kvfold.pipeline.quality.evaluate.evaluation_tables import evaluation_tables
from kvfold.pipeline.quality.subject_names import ENGINE
from kvfold.pipeline.report.evaluation_page import write_evaluation_page
from kvfold.plugins.contract.errors import BundleError
from tests.pipeline.quality.made_up_evaluation import EVALUATION


def test_the_page_says_it_and_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "report" / "cpu").mkdir(parents=True)
    page = write_evaluation_page(tmp_path, "a recipe", "cpu", EVALUATION).read_text()
    for table in evaluation_tables(EVALUATION):
        assert escape(table.title) in page
        assert all(f"<td>{escape(cell.text)}</td>" in page for row in table.rows for cell in row)
    for row in EVALUATION.perplexity:
        assert f"<b>{row.ratios[ENGINE].value:.3f}\u00d7</b>" in page
    assert "a recipe" in page
    assert "<script" not in page and "http" not in page and str(tmp_path) not in page


def test_a_page_that_cannot_be_written_is_a_bundle_s_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"evaluation\.html"):
        write_evaluation_page(tmp_path, "a recipe", "cpu", EVALUATION)
