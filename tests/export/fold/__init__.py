"""Closed-form folding."""
