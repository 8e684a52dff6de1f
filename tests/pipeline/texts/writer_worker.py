"""Writes a text in a process of its own, which kills itself with SIGKILL once a share of it is written."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.pipeline.recipe.recipe_sections import TextSection
from kvfold.pipeline.texts.writer import write_text


def main(model: Path, folder: Path, section: str, last: float) -> None:
    """Write the section of this JSON with the checkpoint `model`, at most to the share `last`."""

    def progress(fraction: float, note: str = "") -> None:
        if fraction >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    write_text(TextSection.model_validate_json(section), load_checkpoint(model), folder, progress)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
