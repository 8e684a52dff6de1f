"""Logits to tokens, by the parameters of a request."""
