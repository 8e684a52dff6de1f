"""Sampling: rows of logits to tokens, and the log probabilities of tokens."""
