"""Checkpoints of every kind."""
