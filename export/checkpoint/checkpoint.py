"""Checkpoint: one pretrained model as the rest of export sees it, whatever file it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from kvfold.export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.progress import Progress, unheard

BLOCK = 1 << 24  # bytes that are hashed between two tellings of progress


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained model.

    Attributes:
        source: what the user named: a folder, a hub id, or a GGUF file.
        config: the unfolded model.
        weights: Hugging Face names to float32 tensors, read from the file on each access.
        tokenizer: its tokenizer in the bundle's format.
        files: every file it was read from.
    """

    source: str
    config: ModelConfig
    weights: Mapping[str, Tensor]
    tokenizer: CheckpointTokenizer
    files: tuple[Path, ...]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names and contents of all files; reads them once, when first asked."""
        return fingerprint_files(self.files)


def fingerprint_files(files: Collection[Path], progress: Progress = unheard) -> str:
    """`Checkpoint.fingerprint` of these files."""
    whole, digest, done = sum(path.stat().st_size for path in files), hashlib.sha256(), 0
    for path in sorted(files):
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                content.update(block)
                done += len(block)
                progress(done / whole)
        digest.update(f"{path.name}:{content.hexdigest()}\n".encode())
    return digest.hexdigest()
