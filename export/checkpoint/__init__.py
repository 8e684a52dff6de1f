"""Read a pretrained model: config, weights and tokenizer of a folder, a hub id or a GGUF file."""

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint

__all__ = ["Checkpoint", "load_checkpoint"]
