"""Servers that the bench starts by itself, what they cost, and the same work without a server."""
