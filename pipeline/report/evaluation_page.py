"""Write `report/<target>/evaluation.html`: what `kvfold eval` measured, as a page that loads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvfold.pipeline.quality.evaluate.evaluation import Evaluation
from kvfold.pipeline.quality.evaluate.evaluation_tables import evaluation_tables
from kvfold.pipeline.quality.subject_names import ENGINE
from kvfold.pipeline.show.html import load_template
from kvfold.pipeline.workspace.write_bundle import name_disk_errors
from kvfold.plugins.contract.version import VERSION


def evaluation_page(target: str) -> str:
    """Where a bundle keeps the page of a target's engine."""
    return f"report/{target}/evaluation.html"


def write_evaluation_page(root: Path, recipe: str, target: str, evaluation: Evaluation) -> Path:
    """Write the page of a recipe's evaluation into the bundle `root`.

    Raises:
        BundleError: it cannot be written.
    """
    path = root / evaluation_page(target)
    page = load_template("evaluation.html.j2").render(
        recipe=recipe,
        tiles=list(_tiles(evaluation)),
        tables=evaluation_tables(evaluation),
        version=VERSION,
    )
    with name_disk_errors(root):
        path.write_text(page, encoding="utf-8")
    return path


def _tiles(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    for row in evaluation.perplexity:
        yield f"{row.ratios[ENGINE].value:.3f}\u00d7", f"the original's perplexity, windows of {row.length:,}"
    engine = next(row for row in evaluation.divergences.candidates if row.candidate == ENGINE)
    yield f"{engine.kl_mean.value:.3f}", "KL to the original, nat per token"
    yield f"{engine.top1_agreement.value:.1%}", "same likeliest token as the original"
