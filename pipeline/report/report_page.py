"""Render `report/index.html`: one self-contained page, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from kvfold.pipeline.quality.subject_names import ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.quality.validate.quality_tables import full_quality_table, verdict_table
from kvfold.pipeline.report import charts
from kvfold.pipeline.report.report_results import Results
from kvfold.pipeline.report.report_tables import fold_error_table, raised_linear_table
from kvfold.pipeline.show import axes
from kvfold.pipeline.show.cache_tables import kv_bytes_table
from kvfold.pipeline.show.html import load_template
from kvfold.plugins.contract.version import VERSION


def render_page(results: Results) -> str:
    """The page as HTML text."""
    measurements = results.measurements
    to_original = [
        ("folded", "folded model", measurements.comparison(ORIGINAL, FOLDED)),
        ("engine", "engine", measurements.comparison(ORIGINAL, ENGINE)),
    ]
    return load_template("report.html.j2").render(
        recipe=results.recipe,
        results=results,
        measurements=measurements,
        frame=axes,
        drawing=charts,
        columns=charts.draw_plan_columns(results.plan),
        kv_chart=charts.chart_kv_bytes(results.plan, results.shape),
        kl_chart=charts.chart_kl_histogram(to_original),
        quality=full_quality_table(measurements),
        verdicts=verdict_table(results.verdicts),
        kv_bytes=kv_bytes_table(results.kv_bytes),
        fold_errors=fold_error_table(results.fold_errors),
        quantization=results.quantization,
        raised_linears=raised_linear_table(results.quantization),
        version=VERSION,
    )
