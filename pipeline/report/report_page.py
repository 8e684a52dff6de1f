"""Render `report/index.html`: one self-contained page, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from kvfold.pipeline.quality.validate.measurements import ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.report import charts
from kvfold.pipeline.report.report_results import Results
from kvfold.plugins.contract.kv_bytes import format_bytes
from kvfold.plugins.contract.version import VERSION

TEMPLATES = Path(__file__).parent.parent / "show" / "templates"
# Most layers whose error the page lists; results.json has all.
WORST_SHOWN = 12


def load_template(name: str) -> Template:
    """A template of `show/templates`; what it is given is escaped, and a name it lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bytes"] = format_bytes
    return environment.get_template(name)


def render_page(results: Results) -> str:
    """The page as HTML text."""
    measurements = results.measurements
    to_original = [
        ("folded", "folded model", measurements.comparison(ORIGINAL, FOLDED)),
        ("engine", "engine", measurements.comparison(ORIGINAL, ENGINE)),
    ]
    fold_errors = sorted(results.fold_errors.items(), key=lambda item: item[1], reverse=True)
    return load_template("report.html.j2").render(
        recipe=results.recipe,
        results=results,
        measurements=measurements,
        frame=charts,
        columns=charts.draw_plan_columns(results.plan),
        kv_chart=charts.chart_kv_bytes(results.plan, results.shape),
        kl_chart=charts.chart_kl_histogram(to_original),
        pairs=[*to_original, ("", "engine against folded", measurements.comparison(FOLDED, ENGINE))],
        fold_errors=fold_errors[:WORST_SHOWN],
        linears=results.quantization.linears,
        raised_linears=results.quantization.raised,
        version=VERSION,
    )
