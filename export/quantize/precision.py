"""Which linear runs in int8, and how far off it was measured to be: the bundle's quantization.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from kvfold.plugins.contract.record import Record

# int8: weights and activations. int8_a16: int8 weights, 16-bit activations (two int8 planes).
Precision = Literal["int8", "int8_a16", "float32"]

_HEAD = "lm_head"


class LinearPrecision(Record):
    """One linear.

    Attributes:
        precision: what it runs in.
        relative_error: |y' - y| / |y| (Frobenius) on calibration text, y' with int8 weights and
            activations; None where int8 was not asked for.
        deployed_error: the same in its own precision; 0 in float32.
    """

    precision: Precision
    relative_error: float | None = None
    deployed_error: float = 0.0


class Quantization(Record):
    """Every linear of the model, by its module path in the decoder."""

    linears: dict[str, LinearPrecision]

    @property
    def precision(self) -> dict[str, Precision]:
        """Each linear's precision, as graph lowering takes it."""
        return {name: linear.precision for name, linear in self.linears.items()}

    @property
    def raised(self) -> list[str]:
        """Linears that were measured but do not run in plain int8, worst first."""
        errors = {n: e.relative_error for n, e in self.linears.items() if e.precision != "int8"}
        measured = {name: error for name, error in errors.items() if error is not None}
        return sorted(measured, key=lambda name: -measured[name])


def rounds_embedding(precision: Mapping[str, Precision]) -> bool:
    """Whether the CPU engine looks tokens up in int8: where the head is quantised, which may be the table."""
    return precision.get(_HEAD, "float32") != "float32"
