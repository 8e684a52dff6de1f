"""OpenVINO GenAI with int4 weights by optimum-intel: groups of 32 with zero points, the head int8."""

from __future__ import annotations

from pathlib import Path

from kvfold.pipeline.bench.contenders import openvino_genai as eight_bits
from kvfold.pipeline.bench.contenders.contender import Limits

TITLE, PACKAGE, INSTALL = eight_bits.TITLE, eight_bits.PACKAGE, eight_bits.INSTALL
WEIGHTS = "int4"

# Its default of 128 must divide every matrix's inputs.
GROUPS = ("--group-size", "32", "--ratio", "1.0")


def prepare(source: Path, target: Path) -> None:
    """Export with optimum-intel."""
    eight_bits.export(source, target, WEIGHTS, GROUPS)


def load(model: Path, limits: Limits) -> eight_bits.OpenVinoGenaiContender:
    """As in 8 bits."""
    return eight_bits.load(model, limits)
