"""Tests of `pipeline/chat`."""
