"""Which linear runs in int8, and how far off it was measured to be: the bundle's quantization.json."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Precision = Literal["int8", "float32"]


class LinearPrecision(BaseModel):
    """One linear.

    Attributes:
        precision: what it runs in.
        relative_error: |y_int8 - y| / |y| (Frobenius) on calibration text, as deployed; None where
            int8 was not asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision
    relative_error: float | None = None


class Quantization(BaseModel):
    """Every linear of the model, by its module path in the decoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    linears: dict[str, LinearPrecision]

    @property
    def precision(self) -> dict[str, Precision]:
        """Each linear's precision, as graph lowering takes it."""
        return {name: linear.precision for name, linear in self.linears.items()}

    @property
    def kept_float32(self) -> list[str]:
        """Linears that int8 was measured to harm too much, worst first."""
        kept = {n: e.relative_error for n, e in self.linears.items() if e.precision == "float32"}
        measured = {name: error for name, error in kept.items() if error is not None}
        return sorted(measured, key=lambda name: -measured[name])
