"""int8 calibration: SmoothQuant, static KV and activation scales, measured error per linear."""
