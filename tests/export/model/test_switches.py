"""What families differ in: the residual stream is the decoder's, tables say how channel pairs turn."""

from __future__ import annotations

import pytest
import torch

from kvfold.export.model.decoder import Decoder
from kvfold.export.model.residual_stream import ResidualStream, load_block
from kvfold.export.model.rope import inverse_frequencies, magnitudes, rope_tables
from kvfold.plugins.contract.fold_plan import FoldPlan
from tests.export.switched_models import SWITCHED, switched_model
from tests.tiny_model import dense_logits, tiny_config

TOKENS = torch.randint(0, 97, (3, 60), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SWITCHED)
def test_a_stream_is_the_model_layer_by_layer(name: str) -> None:
    config, weights = switched_model(name)
    plan = FoldPlan.of(config.attention_shape)
    decoder = Decoder.from_weights(config, plan, weights)
    with torch.no_grad():
        stream = ResidualStream.embed(config, plan, weights, TOKENS)
        for layer in range(config.num_hidden_layers):
            block = load_block(config, plan, weights, layer)
            for rows in stream.batches():
                stream.attend(block, rows)
                stream.advance(block, rows)
        torch.testing.assert_close(
            decoder.logits(decoder.model.norm(stream.hidden)), dense_logits(decoder, TOKENS)
        )


def test_pairs_that_do_not_turn_are_left_as_they_are() -> None:
    config = tiny_config(**SWITCHED["phi4"])
    (rope,) = config.ropes
    cos, sin = rope_tables(config, rope)
    assert torch.equal(cos[:, 6:], torch.ones(256, 2)) and torch.equal(sin[:, 6:], torch.zeros(256, 2))
    torch.testing.assert_close(torch.hypot(cos, sin)[:, :6], torch.full((256, 6), 1.25))
    assert bool((inverse_frequencies(config, rope)[:6] > 0).all())
    plan = FoldPlan.of(config.attention_shape).with_rope_slots(0, (0, 0, 7, 7, 2, 3, 4, 5))
    sizes = [1.25, 1.25, 1.0, 1.0, 1.25, 1.25, 1.25, 1.25]
    assert magnitudes(config, plan, 0).tolist() == sizes


def test_a_layer_without_positions_does_not_turn_at_all() -> None:
    config = tiny_config(**SWITCHED["smollm3"])
    cos, sin = rope_tables(config, config.ropes[1])
    assert torch.equal(cos, torch.ones(256, 8)) and torch.equal(sin, torch.zeros(256, 8))
