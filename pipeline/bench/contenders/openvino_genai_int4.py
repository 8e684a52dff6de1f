"""OpenVINO GenAI with int4 weights by optimum-intel's defaults for them."""

from __future__ import annotations

from pathlib import Path

from kvfold.pipeline.bench.contenders import openvino_genai as eight_bits
from kvfold.pipeline.bench.contenders.contender import Limits

TITLE, PACKAGE, INSTALL = eight_bits.TITLE, eight_bits.PACKAGE, eight_bits.INSTALL
WEIGHTS = "int4"


def prepare(source: Path, target: Path) -> None:
    """Export with optimum-intel."""
    eight_bits.export(source, target, WEIGHTS)


def load(model: Path, limits: Limits) -> eight_bits.OpenVinoGenaiContender:
    """As in 8 bits."""
    return eight_bits.load(model, limits)
