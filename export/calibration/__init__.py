"""Calibration text as token batches: from a file, or written by the model itself."""

from export.calibration.calibration_tokens import calibration_tokens

__all__ = ["calibration_tokens"]
