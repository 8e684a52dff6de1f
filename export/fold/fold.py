"""Fold a model's weights in closed form, so that they fit a FoldPlan; no gradient, no new op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvfold.export.fold.fold_settings import FoldSettings
from kvfold.export.fold.head_sinks import head_sink_name
from kvfold.export.fold.sequential import FoldBank, SequentialFold
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.residual_stream import ResidualStream
from kvfold.plugins.contract.errors import CalibrationError, PlanError
from kvfold.plugins.contract.fold_plan import Bank, FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.contract.progress import Progress, unheard


@dataclass(frozen=True)
class FoldedModel:
    """A folded model.

    Attributes:
        plan: the plan that was asked for, with the RoPE slots of each folded bank.
        weights: Hugging Face names; consumers have no `k_proj` and `v_proj`.
        errors: by folded layer, the relative error of its attention-block output, before its bias, on the
            calibration text: sqrt(E|student - teacher|^2 / E|teacher|^2), each on its own inputs.
    """

    plan: FoldPlan
    weights: dict[str, Tensor]
    errors: dict[int, float]


@dataclass(frozen=True)
class HowToFold:
    """How heads and layers are merged.

    Attributes:
        settings: dials of the regressions and of the RoPE slots.
        method: stands in for the closed form, to be compared with it (`export.fold.baselines`).
    """

    settings: FoldSettings = field(default_factory=FoldSettings)
    method: FoldBank | None = None


def fold_weights(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    plan: FoldPlan,
    tokens: Tensor,
    how: HowToFold | None = None,
    progress: Progress = unheard,
) -> FoldedModel:
    """Weights of the model under `plan`, calibrated on tokens [N, L].

    Only layers of folded banks (fewer KV heads, or read by several layers) change; the identity plan and
    plans of horizons alone return every tensor untouched. Head sinks are added where the plan has them.
    Disk holds four streams of N * L * hidden_size floats in the temporary directory; memory holds one batch,
    the moments, and the keys and values of banks whose readers are still to come.

    Raises:
        PlanError: the plan cannot be reached from this model.
        CalibrationError: the sequences are too short to fit the plan's head sinks on.
    """
    check_foldable(config, plan)
    _check_length(plan, tokens.shape[1])
    how = how or HowToFold()
    banks = {layer: bank for bank in plan.banks for layer in bank.layers}
    dropped = dropped_names(plan)
    folded = {name: weights[name] for name in weights if name not in dropped}
    folded |= {name: torch.zeros(config.num_attention_heads) for name in added_names(plan)}
    worked_on = [
        layer for layer, bank in banks.items() if is_folded(bank, config) or plan.layers[layer].head_sink
    ]
    last = max(worked_on, default=-1)
    errors: dict[int, float] = {}
    if last < 0:
        return FoldedModel(plan, folded, errors)
    identity = build_plan(Preset(preset="identity"), config.attention_shape)
    with torch.no_grad():
        teacher, student = (ResidualStream.embed(config, each, weights, tokens) for each in (identity, plan))
        fold = SequentialFold(config, weights, folded, (teacher, student), how.settings, how.method)
        for layer in range(last + 1):
            progress(layer / (last + 1), f"layer {layer} of {last + 1}")
            if is_folded(banks[layer], config):
                errors[layer] = fold.fold_layer(layer, banks[layer])
            else:
                fold.pass_layer(layer)
    return FoldedModel(fold.student.plan, folded, errors)


def dropped_names(plan: FoldPlan) -> set[str]:
    """Tensors that a plan has no use for: keys and values of consumers."""
    return {
        f"model.layers.{layer}.self_attn.{projection}.{kind}"
        for bank in plan.banks
        for layer in bank.consumers
        for projection in ("k_proj", "v_proj")
        for kind in ("weight", "bias")
    }


def added_names(plan: FoldPlan) -> list[str]:
    """Tensors that a plan needs and no checkpoint has: the head sinks, [query heads] each."""
    return [head_sink_name(index) for index, layer in enumerate(plan.layers) if layer.head_sink]


def is_folded(bank: Bank, config: ModelConfig) -> bool:
    """Whether the bank's weights differ from the checkpoint's: fewer heads, or several readers."""
    return bool(bank.consumers) or bank.num_key_value_heads != config.num_key_value_heads


def check_foldable(config: ModelConfig, plan: FoldPlan) -> None:
    """Raise PlanError where a plan cannot be reached from a model by closed-form folding."""
    shape = (len(plan.layers), plan.num_attention_heads, plan.head_dim)
    model_shape = (config.num_hidden_layers, config.num_attention_heads, config.head_dim)
    if shape != model_shape:
        raise PlanError(
            f"the plan is for (layers, query heads, head_dim) {shape}, the model has {model_shape}; "
            "build the plan from this model's shape"
        )
    for bank in plan.banks:
        if config.num_key_value_heads % bank.num_key_value_heads:
            raise PlanError(
                f"layer {bank.layer}: {config.num_key_value_heads} KV heads cannot fold to "
                f"{bank.num_key_value_heads}; use a divisor"
            )
        if config.qk_norm and is_folded(bank, config):
            what = "each key head by itself" if config.qk_norm == "head" else "all its key heads together"
            raise PlanError(
                f"layer {bank.layer}: {config.family} normalises {what} (QK-norm), so its "
                "heads cannot be merged or shared in closed form; keep its KV heads and donors, "
                "windows, sinks and int8 caches (preset horizon) work"
            )
        others = [i for i in bank.consumers if config.layer_ropes[i] != config.layer_ropes[bank.layer]]
        if others:
            raise PlanError(
                f"layer {others[0]}: its keys turn with another RoPE than those of layer {bank.layer}, so it "
                "cannot read them; share within layers of one kind"
            )


def _check_length(plan: FoldPlan, length: int) -> None:
    """Raise CalibrationError where a window hides nothing of sequences of `length` tokens."""
    for index, layer in enumerate(plan.layers):
        if layer.head_sink and length <= (layer.sliding_window or 0):
            raise CalibrationError(
                f"layer {index}: its window of {layer.sliding_window} hides nothing of calibration sequences "
                f"of {length} tokens, so its head_sink cannot be fitted; give sequences of at least twice "
                "the window"
            )
