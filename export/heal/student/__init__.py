"""The folded model in training."""
