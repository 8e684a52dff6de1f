"""Weights on disk, read a tensor at a time: files, and weights that say only what changed."""
