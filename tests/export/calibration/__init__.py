"""Calibration text."""
