"""Calibrate int8: smooth the weights, measure each linear as deployed, fix all static scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.fake_int8_linear import int8_error, linear_weight
from kvfold.export.quantize.observe import Observations, observe
from kvfold.export.quantize.precision import LinearPrecision, Quantization
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.export.quantize.smooth import apply_scale, choose_scale, smoothing_groups
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, part, unheard

INT8_MAX = 127
HEAD = "lm_head"
# Shares of the time, for the progress display (SmolLM2, 8,192 tokens); measuring linears has the rest.
OBSERVING, SMOOTHING = 0.7, 0.2


@dataclass(frozen=True)
class Calibrated:
    """A calibrated model.

    Attributes:
        weights: float32, Hugging Face names, smoothed; in float they compute what was given.
        scales: `key_scale.<layer>` and `value_scale.<layer>` float32 (KV heads, 1, head_dim) of
            every int8 bank; `activation_scale.<linear>` float32 () of every int8 linear.
        precision: each linear's precision and measured error.
        smoothing: by linear whose input was smoothed, what each channel was divided by and the weight's
            column multiplied with: powers of two, float32 [in].
    """

    weights: dict[str, Tensor]
    scales: dict[str, Tensor]
    precision: Quantization
    smoothing: dict[str, Tensor]


def calibrate(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    plan: FoldPlan,
    tokens: Tensor,
    settings: QuantizeSettings | None = None,
    progress: Progress = unheard,
) -> Calibrated:
    """Calibrate a (folded) model on tokens [N, L].

    All static scales are absmax / 127: nothing seen in calibration is clipped. int8 linears use
    activation scales per token on the CPU; the static ones are for targets with Q/DQ nodes.
    """
    settings = settings or QuantizeSettings()
    smoothed = {name: weights[name] for name in weights}
    smoothing: dict[str, Tensor] = {}
    with torch.no_grad():
        seen = observe(config, smoothed, plan, tokens, part(progress, 0, OBSERVING, "observing ranges"))
        if settings.linears == "none":
            linears = {name: LinearPrecision(precision="float32") for name in seen.inputs}
        else:
            if settings.smooth:
                smoothing = _smooth(
                    config, plan, smoothed, seen, part(progress, OBSERVING, SMOOTHING, "smoothing")
                )
            measured = part(progress, OBSERVING + SMOOTHING, 1 - OBSERVING - SMOOTHING, "measuring linears")
            linears = {}
            for index, name in enumerate(seen.inputs):
                measured(index / len(seen.inputs))
                linears[name] = _measure(name, smoothed, seen, settings)
        precision = Quantization(linears=linears)
        return Calibrated(smoothed, static_scales(plan, seen, precision), precision, smoothing)


def _smooth(
    config: ModelConfig,
    plan: FoldPlan,
    weights: dict[str, Tensor],
    seen: Observations,
    progress: Progress,
) -> dict[str, Tensor]:
    """Smooth every group in `weights`, and what was observed with it; returns `Calibrated.smoothing`."""
    smoothing: dict[str, Tensor] = {}
    groups = list(smoothing_groups(config, plan))
    for index, group in enumerate(groups):
        progress(index / len(groups))
        scale = choose_scale(group, weights, seen.inputs)
        if scale is None:
            continue
        apply_scale(group, scale, weights)
        for reader in group.readers:
            smoothing[reader] = group.columns(scale)
            seen.inputs[reader].divide(smoothing[reader])
        if group.bank is not None:
            seen.value_range[group.bank] = seen.value_range[group.bank] / scale.reshape(
                seen.value_range[group.bank].shape
            )
    return smoothing


def _measure(
    name: str, weights: Mapping[str, Tensor], seen: Observations, settings: QuantizeSettings
) -> LinearPrecision:
    x, weight = seen.inputs[name].sample, linear_weight(name, weights)
    error = int8_error(x, weight)
    if error <= settings.max_relative_error and name != HEAD:
        return LinearPrecision(precision="int8", relative_error=error, deployed_error=error)
    finer = int8_error(x, weight, activation_bits=16)
    if finer <= settings.max_weight_error:
        return LinearPrecision(precision="int8_a16", relative_error=error, deployed_error=finer)
    return LinearPrecision(precision="float32", relative_error=error)


def static_scales(plan: FoldPlan, seen: Observations, precision: Quantization) -> dict[str, Tensor]:
    """Scales by their names in the bundle; a channel that never moved gets 1."""

    def scale(absmax: Tensor) -> Tensor:
        return torch.where(absmax == 0, 1.0, absmax / INT8_MAX)

    scales: dict[str, Tensor] = {}
    for bank in plan.banks:
        if bank.kv_dtype == "int8":
            scales[f"key_scale.{bank.layer}"] = scale(seen.key_range[bank.layer])[:, None]
            scales[f"value_scale.{bank.layer}"] = scale(seen.value_range[bank.layer])[:, None]
    for name, linear in precision.linears.items():
        if linear.precision == "int8":
            scales[f"activation_scale.{name}"] = scale(seen.inputs[name].absmax.amax())
    return scales
