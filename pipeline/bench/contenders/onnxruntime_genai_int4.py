"""onnxruntime-genai with int4 weights by its model builder: blocks of 32, symmetric, the head too."""

from __future__ import annotations

from pathlib import Path

from kvfold.pipeline.bench.contenders import onnxruntime_genai as eight_bits
from kvfold.pipeline.bench.contenders.contender import Limits

TITLE, PACKAGE, INSTALL = eight_bits.TITLE, eight_bits.PACKAGE, eight_bits.INSTALL
WEIGHTS = "int4"


def prepare(source: Path, target: Path) -> None:
    """Run its model builder."""
    eight_bits.build(source, target, WEIGHTS)


def load(model: Path, limits: Limits) -> eight_bits.OnnxRuntimeGenaiContender:
    """As in 8 bits."""
    return eight_bits.load(model, limits)
