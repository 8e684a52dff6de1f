"""Healing by training on tiny random models."""
