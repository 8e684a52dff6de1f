"""int8 calibration: SmoothQuant, static KV and activation scales, measured error per linear."""

from export.quantize.calibrate import Calibrated, FakeQuantizedDecoder, calibrate
from export.quantize.precision import LinearPrecision, Quantization
from export.quantize.settings import QuantizeSettings

__all__ = [
    "Calibrated",
    "FakeQuantizedDecoder",
    "LinearPrecision",
    "Quantization",
    "QuantizeSettings",
    "calibrate",
]
