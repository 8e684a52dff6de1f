"""Where healing starts: a folded model in the form of its adapter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kvfold.export.fold.regression import Moments
from kvfold.export.heal.student.low_rank import (
    FACTORS,
    LEFT,
    RIGHT,
    ChangeSpectrum,
    anchor,
    change_spectrum,
    fit_factors,
    is_low_rank,
    share_ranks,
)
from kvfold.export.heal.student.trainable import trained_names
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.residual_stream import ResidualStream, load_block
from kvfold.plugins.contract.fold_plan import FoldPlan

# Of the training text, for the metric in which a change of low rank is chosen.
METRIC_TOKENS = 16_384


def adapter_form(
    config: ModelConfig,
    base: Mapping[str, Tensor],
    folded: Mapping[str, Tensor],
    plan: FoldPlan,
    tokens: Tensor,
    rank: int | None,
) -> dict[str, Tensor]:
    """The folded model as an adapter's tensors, float32 but for the factors, which are fixed.

    With a rank, matrices lose what factors and a change of that rank cannot hold; training then
    starts from there, and what it learns is what the adapter stores. The rank is a mean: each matrix gets
    as many terms as its outputs ask for, within limits. On SmolLM2 W_Q asks for few, W_O for many.
    """
    names = trained_names(config, plan, folded)
    if rank is None:
        return {name: folded[name].clone() for name in names}
    grams = input_grams(config, folded, plan, tokens[: max(1, METRIC_TOKENS // tokens.shape[1])])
    cut = [name for name in names if is_low_rank(name, config, plan)]
    form = {name: folded[name].clone() for name in names if name not in cut}
    changes: dict[str, ChangeSpectrum] = {}
    for name in cut:
        factors = fit_factors(name, base[name], folded[name], config, plan)
        start = anchor(name, base[name], factors, config, plan)
        form[name + FACTORS] = factors
        changes[name] = change_spectrum(folded[name], start, grams[name])
    energies = {name: change.energies for name, change in changes.items()}
    ranks = share_ranks(energies, rank)
    for name, change in changes.items():
        form[name + LEFT], form[name + RIGHT] = change.cut(ranks[name])
    return form


def input_grams(
    config: ModelConfig, weights: Mapping[str, Tensor], plan: FoldPlan, tokens: Tensor
) -> dict[str, Tensor]:
    """E[x x^T] of the inputs of every projection of attention, by tensor name, over tokens [N, L]."""
    grams: dict[str, Tensor] = {}
    with torch.no_grad():
        stream = ResidualStream.embed(config, plan, weights, tokens)
        for layer in range(config.num_hidden_layers):
            block = load_block(config, plan, weights, layer)
            inputs = _watch(block.self_attn.qkv_proj)
            seen = dict.fromkeys(("q_proj", "k_proj", "v_proj"), inputs)
            seen["o_proj"] = _watch(block.self_attn.o_proj)
            for rows in stream.batches():
                stream.attend(block, rows)
                stream.advance(block, rows)
            for projection, moments in seen.items():
                grams[f"model.layers.{layer}.self_attn.{projection}.weight"] = moments.gram / moments.tokens
    return grams


def _watch(linear: nn.Linear) -> Moments:
    moments = Moments(linear.in_features, 0)
    linear.register_forward_pre_hook(lambda _, inputs: moments.add(inputs[0], inputs[0][..., :0]))
    return moments
