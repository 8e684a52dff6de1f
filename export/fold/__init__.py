"""Closed-form folding: fewer KV heads and shared layers without training."""

from export.fold.fold import FoldedModel, FoldSettings, fold_weights

__all__ = ["FoldSettings", "FoldedModel", "fold_weights"]
