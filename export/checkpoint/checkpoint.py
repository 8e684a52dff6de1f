"""Checkpoint: one pretrained model as the rest of export sees it, whatever file it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from kvfold.export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from kvfold.export.model.model_config import ModelConfig


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
        digest = hashlib.sha256()
        for path in sorted(self.files):
            with path.open("rb") as file:
                digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()
