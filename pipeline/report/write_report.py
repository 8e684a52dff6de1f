"""Write the report: collect the bundle's measurements, judge them, render the page."""

from __future__ import annotations

import json
from pathlib import Path

from kvfold.pipeline.quality.validate.measurements import Measurements, judge, measurements_file
from kvfold.pipeline.report.report_page import render_page
from kvfold.pipeline.report.report_results import Results, page_file, results_file
from kvfold.pipeline.workspace.tool_versions import tool_versions
from kvfold.pipeline.workspace.workspace import FOLD_ERRORS, Workspace
from kvfold.plugins.contract.kv_savings import kv_bytes
from kvfold.runtime.bundle import read_record


def write_report(workspace: Workspace, output: Path) -> None:
    """Write results and page of the recipe's target into `output`."""
    root, recipe = workspace.root, workspace.recipe
    measurements = read_record(root / measurements_file(recipe.target), Measurements)
    shape = workspace.config.attention_shape
    results = Results(
        recipe=recipe.name,
        plan=workspace.plan,
        shape=shape,
        kv_bytes=kv_bytes(workspace.plan, shape),
        measurements=measurements,
        verdicts=tuple(judge(measurements, recipe.validate_on.thresholds)),
        fold_errors=json.loads((root / FOLD_ERRORS).read_text()),
        quantization=workspace.quantization,
        tools=tool_versions(),
    )
    path = output / results_file(recipe.target)
    path.parent.mkdir(parents=True)
    path.write_text(results.model_dump_json(indent=1) + "\n")
    (output / page_file(recipe.target)).write_text(render_page(results), encoding="utf-8")
