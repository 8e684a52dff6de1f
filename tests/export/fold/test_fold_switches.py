"""Folding models of other families: what is low-rank folds without loss, what cannot be shared is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvfold.export.fold.fold import fold_weights
from kvfold.export.fold.head_sinks import SinklessAttention
from kvfold.export.model.decoder import Attention, Decoder
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.fold_plan import FoldPlan
from tests.export.fold.test_fold import HELD_OUT, TOKENS, copy_heads
from tests.export.switched_models import SWITCHED, switched_model
from tests.tiny_model import dense_logits, tiny_config, tiny_decoder, tiny_plan

UNNORMED = [name for name, changes in SWITCHED.items() if "qk_norm" not in changes]


@pytest.mark.parametrize("name", UNNORMED)
def test_low_rank_heads_fold_without_loss(name: str) -> None:
    config, weights = switched_model(name)
    layers = range(config.num_hidden_layers)
    for layer in layers:
        copy_heads(weights, (layer, 0), (layer, 1))
    own = FoldPlan.of(config.attention_shape)
    before = dense_logits(Decoder.from_weights(config, own, weights), HELD_OUT)
    folded = fold_weights(config, weights, own.with_layers(layers, num_key_value_heads=1), TOKENS)
    after = dense_logits(Decoder.from_weights(config, folded.plan, folded.weights), HELD_OUT)
    assert float((after - before).abs().max()) <= 1e-3
    assert max(folded.errors.values()) < 1e-3


def test_layers_that_turn_otherwise_do_not_share() -> None:
    config, weights = switched_model("smollm3")
    plan = FoldPlan.of(config.attention_shape)
    with pytest.raises(PlanError, match="layer 1: its keys turn with another RoPE than those of layer 0"):
        fold_weights(config, weights, plan.with_layers([1], donor=0), TOKENS)
    assert fold_weights(config, weights, plan.with_layers([2], donor=0), TOKENS).errors.keys() == {0, 2}


def test_a_norm_over_all_key_heads_refuses_merged_heads() -> None:
    config, weights = switched_model("olmo2")
    plan = FoldPlan.of(config.attention_shape).with_layers(range(4), num_key_value_heads=1)
    with pytest.raises(PlanError, match="normalises all its key heads together"):
        fold_weights(config, weights, plan, TOKENS)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("length", [20, 300])
def test_a_sink_scales_what_is_computed_without_it(length: int, softcap: float) -> None:
    config = tiny_config(num_hidden_layers=1, attention_scale=0.4, attention_softcap=softcap)
    plan = tiny_plan(config, "horizon", head_sink=True)
    decoder = tiny_decoder(config, plan)
    hidden = torch.randn(2, length, config.hidden_size, generator=torch.Generator().manual_seed(0))
    if length > config.max_position_embeddings:
        config = config.model_copy(update={"max_position_embeddings": length})
    dense, sinkless = DenseAttention(config, plan), SinklessAttention(config, plan)
    attention = decoder.model.get_submodule("layers.0.self_attn")
    assert isinstance(attention, Attention) and attention.sinks is not None
    results: list[Tensor] = [mixer(attention, attention.project(hidden)) for mixer in (dense, sinkless)]
    share = torch.sigmoid(sinkless.log_sum_exp - attention.sinks)
    torch.testing.assert_close(results[1] * share.repeat_interleave(config.head_dim, dim=-1), results[0])
