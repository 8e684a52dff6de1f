"""read_config: what a model looks like, from a few kilobytes of it: no weights, no vocabulary, no torch."""

from __future__ import annotations

import json
from pathlib import Path

from kvfold.export.checkpoint.gguf_config import config_of_header
from kvfold.export.checkpoint.gguf_header import read_gguf_header
from kvfold.export.model.families import config_from_huggingface
from kvfold.export.model.model_config import ModelConfig


def read_config(source: str | Path) -> ModelConfig:
    """The config of a source that `load_checkpoint` takes; a hub id is fetched whole, and kept, as there.

    Raises:
        CheckpointError, UnsupportedModelError: as `load_checkpoint`, as far as the config says it.
    """
    path = Path(source)
    if path.is_file():
        return config_of_header(read_gguf_header(path))
    try:
        declared = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        declared = None
    if isinstance(declared, dict) and declared:
        return config_from_huggingface(declared)
    from kvfold.export.checkpoint.load_checkpoint import load_checkpoint

    return load_checkpoint(source).config  # or its words for what is wrong with the folder
