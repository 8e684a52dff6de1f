"""Tests; the tree mirrors the four packages."""
