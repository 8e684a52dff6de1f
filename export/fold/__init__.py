"""Closed-form folding: fewer KV heads and shared layers without training."""
