"""Calibration text as token batches: from a file, or written by the model itself."""

from kvfold.export.calibration.calibration_tokens import calibration_tokens

__all__ = ["calibration_tokens"]
