"""Linears in 4 bits."""
