"""Weights on disk by reference."""
