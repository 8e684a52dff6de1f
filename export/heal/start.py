"""Where healing starts: a folded model in the form of its adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from export.fold.regression import Moments
from export.heal.low_rank import FACTORED, FACTORS, LEFT, RIGHT, anchor, fit_change, fit_factors
from export.heal.trained import trained_names
from export.model.config import ModelConfig
from export.model.residual_stream import ResidualStream, load_block
from plugins.fold_plan import FoldPlan

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

    With a rank, W_Q and W_O lose what factors and a change of that rank cannot hold; training then
    starts from there, and what it learns is what the adapter stores.
    """
    names = trained_names(config, plan, folded)
    if rank is None:
        return {name: folded[name].clone() for name in names}
    grams = input_grams(config, folded, plan, tokens[: max(1, METRIC_TOKENS // tokens.shape[1])])
    form: dict[str, Tensor] = {}
    for name in names:
        if not name.endswith(FACTORED):
            form[name] = folded[name].clone()
            continue
        before, after = base[name], folded[name]
        form[name + FACTORS] = fit_factors(name, before, after, config, plan)
        change = after - anchor(name, before, form[name + FACTORS], config, plan)
        form[name + LEFT], form[name + RIGHT] = fit_change(change, grams[name], rank, float(after.norm()))
    return form


def input_grams(
    config: ModelConfig, weights: Mapping[str, Tensor], plan: FoldPlan, tokens: Tensor
) -> dict[str, Tensor]:
    """E[x x^T] of the inputs of every W_Q and W_O, by tensor name, over tokens [N, L]."""
    grams: dict[str, Tensor] = {}
    with TemporaryDirectory(prefix="kvfold-heal-") as folder, torch.no_grad():
        stream = ResidualStream.embed(config, plan, weights, tokens, Path(folder))
        for layer in range(config.num_hidden_layers):
            block = load_block(config, plan, weights, layer)
            seen = {
                "q_proj": _watch(block.self_attn.qkv_proj),
                "o_proj": _watch(block.self_attn.o_proj),
            }
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
