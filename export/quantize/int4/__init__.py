"""Linears in 4 bits: blocks that a checkpoint already has, blocks found for other weights, their error."""
