"""llama.cpp with Q4_K_M weights, by its own quantiser; the head, as it chooses, in more."""

from __future__ import annotations

from pathlib import Path

from kvfold.pipeline.bench.contenders import llama_cpp as eight_bits
from kvfold.pipeline.bench.contenders.contender import Limits

TITLE, PACKAGE, INSTALL = eight_bits.TITLE, eight_bits.PACKAGE, eight_bits.INSTALL
WEIGHTS = "Q4_K_M"


def prepare(source: Path, target: Path) -> None:
    """Write a GGUF and quantise it."""
    eight_bits.prepare_requantized(source, target, "LLAMA_FTYPE_MOSTLY_Q4_K_M")


def load(model: Path, limits: Limits) -> eight_bits.LlamaCppContender:
    """As in 8 bits."""
    return eight_bits.load(model, limits)
