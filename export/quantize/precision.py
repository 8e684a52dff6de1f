"""What each linear runs in, and how far off it was measured to be: the bundle's quantization.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from kvfold.plugins.contract.record import Record

# int8, int4: weights in so many bits, activations in 8. *_a16: activations in 16 (two int8 planes).
Precision = Literal["int8", "int8_a16", "int4", "int4_a16", "float32"]
WeightBits = Literal["int8", "int4"]

_HEAD = "lm_head"


class LinearPrecision(Record):
    """One linear.

    Attributes:
        precision: what it runs in.
        relative_error: |y' - y| / |y| (Frobenius) on calibration text, y' with weights in the bits that were
            asked for and int8 activations; None where neither was asked for.
        deployed_error: the same in its own precision; 0 in float32.
        exact: 4-bit weights that are the checkpoint's own blocks: nothing was rounded.
        symmetric: 4-bit weights whose blocks have no minima.
    """

    precision: Precision
    relative_error: float | None = None
    deployed_error: float = 0.0
    exact: bool = False
    symmetric: bool = False


class Quantization(Record):
    """Every linear of the model, by its module path in the decoder.

    Attributes:
        linears: what each runs in.
        weights: what was asked for.
    """

    linears: dict[str, LinearPrecision]
    weights: WeightBits = "int8"

    @property
    def precision(self) -> dict[str, Precision]:
        """Each linear's precision, as graph lowering takes it."""
        return {name: linear.precision for name, linear in self.linears.items()}

    @property
    def summary(self) -> str:
        """How many linears run in each precision, the most frequent first."""
        counts = Counter(self.precision.values()).most_common()
        exact = sum(linear.exact for linear in self.linears.values())
        own = f"; {exact} have the checkpoint's own 4-bit blocks" if exact else ""
        return "linears: " + ", ".join(f"{count} {kind}" for kind, count in counts) + own

    @property
    def raised(self) -> list[str]:
        """Linears that were measured but do not run in plain int8, or int4, as was asked; worst first."""
        errors = {n: e.relative_error for n, e in self.linears.items() if e.precision != self.weights}
        measured = {name: error for name, error in errors.items() if error is not None}
        return sorted(measured, key=lambda name: -measured[name])


def rounds_embedding(precision: Mapping[str, Precision]) -> bool:
    """Whether the CPU engine looks tokens up in int8: where the head is quantised, which may be the table."""
    return precision.get(_HEAD, "float32") != "float32"
