"""What a user may set of calibration."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from kvfold.export.quantize.precision import WeightBits
from kvfold.plugins.contract.record import Record


class QuantizeSettings(Record):
    """Dials of calibration; whether the KV cache is int8 is the plan's `kv_dtype`.

    Attributes:
        linears: `int8` quantises weights and activations, `none` keeps every linear in float32.
        weights: `int4` keeps weights in blocks of 32 with a scale and a minimum each, on the CPU: those that
            a GGUF file holds as Q4_0 or Q4_1 exactly as they are, others rounded by GPTQ (arXiv 2210.17323).
        smooth: move activation outliers into int8 weights first (SmoothQuant, arXiv 2211.10438); in front of
            4-bit weights they have a scale a block and need none.
        max_relative_error: a linear whose int8 output is further off than this, relative to the
            output's norm on calibration text, gets 16-bit activations and is listed. So does one with 4-bit
            weights of which activations alone add as much. So does a head in int8, always: its error is the
            logits' own, and only sampled rows pass through it.
        max_weight_error: a linear that is further off than this even so, by its int8 weights alone,
            stays in float32 and is listed. ONNX Runtime's float product may round differently with
            the number of rows, so cold and warm runs are then equal up to float rounding only.
        max_int4_error: a linear whose 4-bit weights alone put its output further off than this stays in
            int8 and is listed.
    """

    linears: Literal["int8", "none"] = "int8"
    weights: WeightBits = "int8"
    smooth: bool = True
    max_relative_error: float = Field(default=0.02, gt=0)
    max_weight_error: float = Field(default=0.05, gt=0)
    max_int4_error: float = Field(default=0.03, gt=0)

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.weights == "int4" and self.linears == "none":
            raise ValueError("weights: int4 and linears: none contradict each other; leave one of them out")
        return self
