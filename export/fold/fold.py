"""Fold a model's weights in closed form, so that they fit a FoldPlan; no gradient, no new op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from kvfold.export.fold.fold_settings import FoldSettings
from kvfold.export.fold.head_sinks import head_sink_name
from kvfold.export.fold.sequential import FoldBank, SequentialFold
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.residual_stream import ResidualStream
from kvfold.export.weights.changed_weights import ChangedWeights, EditedWeights, dropped_names
from kvfold.export.weights.layer_journal import Journal, MemoryJournal
from kvfold.plugins.contract.errors import CalibrationError, PlanError
from kvfold.plugins.contract.fold_plan import Bank, FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.contract.progress import Progress, unheard


@dataclass(frozen=True)
class FoldedModel:
    """A folded model.

    Attributes:
        plan: the plan that was asked for, with the RoPE slots of each folded bank.
        weights: Hugging Face names, by reference to the given ones; consumers have no `k_proj` and `v_proj`.
        errors: by folded layer, the relative error of its attention-block output, before its bias, on the
            calibration text: sqrt(E|student - teacher|^2 / E|teacher|^2), each on its own inputs.
    """

    plan: FoldPlan
    weights: Mapping[str, Tensor]
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
    journal: Journal | None = None,
) -> FoldedModel:
    """Weights of the model under `plan`, calibrated on tokens [N, L].

    Only layers of folded banks (fewer KV heads, or read by several layers) change; the identity plan and
    plans of horizons alone leave every tensor untouched. Head sinks are added where the plan has them.
    Disk holds six streams of N * L * hidden_size floats in the temporary directory; memory holds a layer of
    both models, one batch, the moments, and the keys and values of banks whose readers are still to come.
    What changed is in the journal, by default in memory; a journal on disk also goes on after a kill.

    Raises:
        PlanError: the plan cannot be reached from this model.
        CalibrationError: the sequences are too short to fit the plan's head sinks on.
    """
    check_foldable(config, plan)
    _check_length(plan, tokens.shape[1])
    how, journal = how or HowToFold(), journal or MemoryJournal()
    dropped, layers, state = dropped_names(plan), _layers_to_pass(config, plan), journal.load()
    if not layers:
        return FoldedModel(plan, ChangedWeights(weights, {}, dropped), {})
    identity = build_plan(Preset(preset="identity"), config.attention_shape)
    folded = EditedWeights(weights, dropped)
    with torch.no_grad():
        streams = (
            ResidualStream.embed(config, identity, weights, tokens),
            ResidualStream.embed(config, plan, weights, tokens),
        )
        fold = SequentialFold(config, weights, folded, streams, how.settings, how.method)
        first = 0 if state is None else fold.restore(state)
        state = None  # both streams are in it
        folded.update({name: torch.zeros(config.num_attention_heads) for name in added_names(plan, first)})
        for layer in layers[first:]:
            progress(layer / len(layers), f"layer {layer} of {len(layers)}")
            bank = next(bank for bank in plan.banks if layer in bank.layers)
            if is_folded(bank, config):
                fold.fold_layer(layer, bank)
            else:
                fold.pass_layer(layer)
            own = folded.take(f"model.layers.{layer}.")
            journal.finish(layer, own, partial(fold.state, layer + 1))
    return FoldedModel(fold.student.plan, ChangedWeights(weights, journal.tensors, dropped), fold.errors)


def _layers_to_pass(config: ModelConfig, plan: FoldPlan) -> range:
    """Layers up to the last one that changes."""
    changed = [layer for bank in plan.banks if is_folded(bank, config) for layer in bank.layers]
    changed += [index for index, layer in enumerate(plan.layers) if layer.head_sink]
    return range(max(changed, default=-1) + 1)


def added_names(plan: FoldPlan, first: int = 0) -> list[str]:
    """Tensors that a plan needs and no checkpoint has: head sinks, [query heads] each, from a layer on."""
    return [
        head_sink_name(index) for index, layer in enumerate(plan.layers) if layer.head_sink and index >= first
    ]


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
