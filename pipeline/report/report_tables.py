"""Tables of what was exported: layers that folding changed most, and linears that int8 harms."""

from __future__ import annotations

from collections.abc import Mapping

from kvfold.export.quantize.precision import Quantization
from kvfold.pipeline.show.table import Table

# Most layers whose error the page lists; results.json has all.
WORST_SHOWN = 12


def fold_error_table(errors: Mapping[int, float]) -> Table:
    """Relative error of each layer's attention block, the worst first."""
    worst = sorted(errors.items(), key=lambda item: item[1], reverse=True)[:WORST_SHOWN]
    return Table.of(
        "Fold, worst layers",
        ("layer", "relative error of the attention block"),
        ((str(layer), f"{error:.3f}") for layer, error in worst),
    )


def raised_linear_table(quantization: Quantization) -> Table:
    """Linears that run higher than was asked, worst first."""
    raised = ((name, quantization.linears[name]) for name in quantization.raised)
    return Table.of(
        f"{quantization.weights} linears",
        ("linear", "runs in", f"relative error in {quantization.weights}", "as it runs"),
        (
            (name, linear.precision, f"{linear.relative_error:.3f}", f"{linear.deployed_error:.3f}")
            for name, linear in raised
        ),
    )
