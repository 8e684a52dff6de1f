"""Traces that are small enough to know what is found again."""
