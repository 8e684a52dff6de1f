"""int8 calibration."""
