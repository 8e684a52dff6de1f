"""Tests of the loop that owns an engine."""
