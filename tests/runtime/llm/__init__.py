"""Tests of what a program calls."""
