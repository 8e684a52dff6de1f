"""What of the model in training int8 will round, and how: found once by calibration, then kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from kvfold.export.heal.student.int8_rounding import Rounding
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.calibrate import Calibrated
from kvfold.export.quantize.fake_int8_linear import tensor_names
from kvfold.export.quantize.layer_calibration import HEAD
from kvfold.export.quantize.precision import Precision
from kvfold.plugins.contract.fold_plan import FoldPlan


@dataclass(frozen=True)
class Int8Deployment:
    """Calibration's answers, in terms of the unsmoothed tensors that healing trains.

    Smoothing moves powers of two between tensors, so a linear of unsmoothed tensors that divides its input
    and multiplies its columns just before rounding computes the same bits, and a scale of smoothed
    values becomes one of the values themselves. The fields are plain, for the journal.

    Attributes:
        precision: of each linear, by its module path in the decoder.
        smoothing: as `Calibrated.smoothing`.
        kv_scales: `key_scale.<layer>` and `value_scale.<layer>` float32 (KV heads, 1, head_dim) of every
            int8 bank, unsmoothed.
    """

    precision: dict[str, Precision]
    smoothing: dict[str, Tensor]
    kv_scales: dict[str, Tensor]

    @classmethod
    def of(cls, config: ModelConfig, plan: FoldPlan, calibrated: Calibrated) -> Int8Deployment:
        """The answers of one calibration."""
        scales: dict[str, Tensor] = {}
        for bank in plan.banks:
            if bank.kv_dtype != "int8":
                continue
            key, value = f"key_scale.{bank.layer}", f"value_scale.{bank.layer}"
            scales[key], scales[value] = calibrated.scales[key], calibrated.scales[value]
            columns = calibrated.smoothing.get(f"model.layers.{bank.layer}.self_attn.o_proj")
            if columns is not None:
                heads = columns.reshape(bank.num_key_value_heads, -1, config.head_dim)
                scales[value] = scales[value] * heads[:, :1]  # all query heads of a KV head have its scale
        return cls(calibrated.precision.precision, calibrated.smoothing, scales)

    def to(self, device: torch.device) -> Self:
        """The same, with its tensors on a device."""
        smoothing, scales = (
            {name: tensor.to(device) for name, tensor in tensors.items()}
            for tensors in (self.smoothing, self.kv_scales)
        )
        return replace(self, smoothing=smoothing, kv_scales=scales)

    def rounding(self, linear: str, width: int) -> Rounding | None:
        """How a linear of `width` inputs rounds; None where it stays in float."""
        if (precision := self.precision[linear]) == "float32":
            return None
        smoothing = self.smoothing.get(linear, torch.ones(width))
        return Rounding(16 if precision == "int8_a16" else 8, smoothing)

    def rounded_tensors(self, weights: Mapping[str, Tensor]) -> set[str]:
        """Names of the weights below the head that are rounded."""
        linears = [name for name, precision in self.precision.items() if precision != "float32"]
        return {tensor for name in linears if name != HEAD for tensor in tensor_names(name, weights)}
