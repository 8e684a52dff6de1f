"""load_checkpoint: one entry for every kind of source."""

from __future__ import annotations

from pathlib import Path

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.gguf_file import checkpoint_from_gguf
from kvfold.export.checkpoint.huggingface import checkpoint_from_folder, fetch_from_hub
from kvfold.plugins.contract.errors import CheckpointError

WEIGHTS_ALONE = (".safetensors", ".bin", ".pt", ".pth")


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Open a pretrained model.

    Args:
        source: a folder in Hugging Face's layout, a GGUF file, or a hub id (`owner/name`).

    Raises:
        CheckpointError: the source does not exist, or a file of it is missing, truncated or corrupted.
        UnsupportedModelError: its architecture or one of its features is not supported; it is named.
    """
    path = Path(source)
    if path.is_dir():
        return checkpoint_from_folder(path, str(source))
    if path.is_file() and path.suffix in WEIGHTS_ALONE:
        raise CheckpointError(
            f"{path} is a file of weights, which say nothing of the model; name its folder, {path.parent}"
        )
    if path.is_file():
        return checkpoint_from_gguf(path)
    if path.suffix == ".gguf" or path.is_absolute() or isinstance(source, Path) or source.count("/") > 1:
        raise CheckpointError(
            f"{source} does not exist; name a folder, a .gguf file or a hub id (owner/name)"
        )
    return checkpoint_from_folder(fetch_from_hub(source), source)
