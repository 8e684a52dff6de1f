"""Scenarios that run only where they are asked for."""
