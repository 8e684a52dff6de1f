"""llama.cpp with the checkpoint's own GGUF file as it is: the blocks that kvfold's int4 linears keep."""

from __future__ import annotations

import os
from pathlib import Path

from kvfold.pipeline.bench.contenders import llama_cpp as eight_bits
from kvfold.pipeline.bench.contenders.contender import Limits
from kvfold.pipeline.bench.models.gguf_from_huggingface import ORIGINAL

TITLE, PACKAGE, INSTALL = eight_bits.TITLE, eight_bits.PACKAGE, eight_bits.INSTALL
WEIGHTS = "the GGUF's own"


def prepare(source: Path, target: Path) -> None:
    """Link the file, by its way from here: a work folder may be moved.

    Raises:
        FileNotFoundError: the checkpoint is no GGUF file.
    """
    original = source / ORIGINAL
    if not original.exists():
        raise FileNotFoundError("the checkpoint is no GGUF file, so llama.cpp has none to read as it is")
    (target / eight_bits.MODEL).symlink_to(os.path.relpath(original, target))


def load(model: Path, limits: Limits) -> eight_bits.LlamaCppContender:
    """As in 8 bits."""
    return eight_bits.load(model, limits)
