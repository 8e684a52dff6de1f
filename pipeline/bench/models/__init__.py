"""Peers' models, made from the same weights."""
