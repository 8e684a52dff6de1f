"""What a user may set of int8 calibration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kvfold.plugins.contract.record import Record


class QuantizeSettings(Record):
    """Dials of int8 calibration; whether the KV cache is int8 is the plan's `kv_dtype`.

    Attributes:
        linears: `int8` quantises weights and activations, `none` keeps every linear in float32.
        smooth: move activation outliers into the weights first (SmoothQuant, arXiv 2211.10438).
        max_relative_error: a linear whose int8 output is further off than this, relative to the
            output's norm on calibration text, gets 16-bit activations and is listed. So does the
            head, always: its error is the logits' own, and only sampled rows pass through it.
        max_weight_error: a linear that is further off than this even so, by its int8 weights alone,
            stays in float32 and is listed. ONNX Runtime's float product may round differently with
            the number of rows, so cold and warm runs are then equal up to float rounding only.
    """

    linears: Literal["int8", "none"] = "int8"
    smooth: bool = True
    max_relative_error: float = Field(default=0.02, gt=0)
    max_weight_error: float = Field(default=0.05, gt=0)
