"""Where healing starts: a folded model in the form of its adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
    most_terms,
    share_ranks,
)
from kvfold.export.heal.student.trainable import trained_names
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.residual_stream import ResidualStream, load_block
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, unheard

# Of the training text, for the metric in which a change of low rank is chosen.
METRIC_TOKENS = 16_384


def adapter_form(
    config: ModelConfig,
    base: Mapping[str, Tensor],
    folded: Mapping[str, Tensor],
    plan: FoldPlan,
    tokens: Tensor,
    rank: int | None,
    progress: Progress = unheard,
) -> dict[str, Tensor]:
    """The folded model as an adapter's tensors, float32 but for the factors, which are fixed.

    With a rank, matrices lose what factors and a change of that rank cannot hold; training then
    starts from there, and what it learns is what the adapter stores. The rank is a mean: each matrix gets
    as many terms as its outputs ask for, within limits. On SmolLM2 W_Q asks for few, W_O for many.
    """
    names = trained_names(config, plan, folded)
    if rank is None:
        return {name: folded[name].clone() for name in names}
    cut = [name for name in names if is_low_rank(name, config, plan)]
    form = {name: folded[name].clone() for name in names if name not in cut}
    factors: dict[str, Tensor] = {}
    changes: dict[str, ChangeSpectrum] = {}
    text = tokens[: max(1, METRIC_TOKENS // tokens.shape[1])]
    for layer, grams in enumerate(input_grams(config, folded, plan, text)):
        progress(layer / config.num_hidden_layers)
        for name in grams.keys() & set(cut):
            before, after = base[name], folded[name]
            factors[name] = fit_factors(name, before, after, config, plan)
            start = anchor(name, before, factors[name], config, plan)
            changes[name] = change_spectrum(after, start, grams[name]).first(most_terms(rank))
    ranks = share_ranks({name: changes[name].energies for name in cut}, rank)
    form |= {name + FACTORS: factors[name] for name in cut}
    for name in cut:
        form[name + LEFT], form[name + RIGHT] = changes[name].cut(ranks[name])
    return form


def input_grams(
    config: ModelConfig, weights: Mapping[str, Tensor], plan: FoldPlan, tokens: Tensor
) -> Iterator[dict[str, Tensor]]:
    """E[x x^T] of the inputs of attention's projections, by tensor name, a layer after the other.

    They are of tokens [N, L].
    """
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
            yield {
                f"model.layers.{layer}.self_attn.{projection}.weight": moments.gram / moments.tokens
                for projection, moments in seen.items()
            }


def _watch(linear: nn.Linear) -> Moments:
    moments = Moments(linear.in_features, 0)
    linear.register_forward_pre_hook(lambda _, inputs: moments.add(inputs[0], inputs[0][..., :0]))
    return moments
