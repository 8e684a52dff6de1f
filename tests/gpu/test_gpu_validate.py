"""`kvfold validate` of the tiny recipe on the GPU."""

from __future__ import annotations

from click.testing import CliRunner

from kvfold.pipeline.cli import cli
from kvfold.pipeline.report.report_results import read_results
from tests.gpu.conftest import RecordProperty
from tests.gpu.tiny_bundle import TinyBundle


def test_the_recipes_thresholds_are_met(
    tiny: TinyBundle, target: str, architectures: tuple[int, ...], record_property: RecordProperty
) -> None:
    """The command builds what is missing, compares original, folded and engine, and passes."""
    arguments = ["validate", str(tiny.recipe), "--output", str(tiny.root), "--target", target]
    if architectures:
        arguments += ["--sm", ",".join(map(str, architectures))]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception}"
    results = read_results(tiny.root, target)
    assert results.verdicts and results.measurements.reused_tokens > 0
    for verdict in results.verdicts:
        record_property(verdict.meaning, f"{verdict.measured:.2e} (limit {verdict.limit:g})")
