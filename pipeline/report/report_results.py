"""`report/<target>/results.json`: everything measured of an engine, and missed thresholds as an error."""

from __future__ import annotations

from pathlib import Path

from kvfold.export.quantize.precision import Quantization
from kvfold.pipeline.quality.validate.measurements import Measurements, Verdict
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.errors import ValidationError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.kv_savings import KvBytes
from kvfold.plugins.contract.record import Record
from kvfold.runtime.bundle import open_bundle, read_record


def results_file(target: str) -> str:
    """Where the results of a target's validation are in a bundle."""
    return f"report/{target}/results.json"


def page_file(target: str) -> str:
    """Where they are for people."""
    return f"report/{target}/index.html"


class Results(Record):
    """`results.json`: everything the report page shows, for other programs to read."""

    recipe: str
    plan: FoldPlan
    shape: AttentionShape
    kv_bytes: tuple[KvBytes, ...]
    measurements: Measurements
    verdicts: tuple[Verdict, ...]
    fold_errors: dict[int, float]
    quantization: Quantization
    tools: dict[str, str]


def read_results(root: Path, target: str = "cpu") -> Results:
    """The results of a bundle's target; raises BundleError where it is not validated yet."""
    return read_record(open_bundle(root).file(results_file(target)), Results)


def require_passed(results: Results) -> None:
    """Raise ValidationError that names every missed threshold."""
    missed = [verdict for verdict in results.verdicts if not verdict.passed]
    if missed:
        lines = [
            f"  {v.threshold}: {v.meaning} is {v.measured:.5g}, the recipe demands {v.limit:g}"
            for v in missed
        ]
        raise ValidationError(
            "\n".join(
                [
                    f"recipe {results.recipe} missed {len(missed)} of {len(results.verdicts)} thresholds:",
                    *lines,
                ]
            )
            + "\nfold less, calibrate on more text, or change validate.thresholds knowingly"
        )
