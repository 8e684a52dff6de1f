"""Closed-form folding: fewer KV heads and shared layers without training."""

from export.fold.fold import FoldedModel, fold_weights
from export.fold.settings import FoldSettings

__all__ = ["FoldSettings", "FoldedModel", "fold_weights"]
