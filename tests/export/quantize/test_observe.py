"""What is sampled of a linear's input: the same positions of every sequence, the first among them."""

from __future__ import annotations

import pytest
import torch

from kvfold.export.model.families import config_from_huggingface
from kvfold.export.model.norms import RMSNorm
from kvfold.export.model.residual_stream import ResidualStream, load_block
from kvfold.export.quantize.observe import LinearInput, observe_head, observe_layer, sample_stride
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan
from tests.export.tiny_checkpoints import random_model


def test_the_first_token_of_every_sequence_is_sampled() -> None:
    first, second = torch.randn(3, 50, 4), torch.randn(1, 50, 4)
    seen = LinearInput(torch.zeros(4))
    for x in (first, second):
        seen.add(x, stride=7)
    assert seen.sample.shape == (4 * 8, 4)
    assert torch.equal(seen.sample[::8], torch.cat([first, second])[:, 0])
    assert torch.equal(seen.absmax, torch.cat([first, second]).abs().amax((0, 1)))


@pytest.mark.parametrize(("sequences", "length"), [(512, 64), (300, 9), (400, 2)])
def test_more_than_the_first_tokens_of_many_short_sequences_are_sampled(sequences: int, length: int) -> None:
    """They are often all the same, and attend to themselves alone."""
    tokens = torch.arange(length).repeat(sequences, 1)
    seen = LinearInput.of(1)
    seen.add(tokens[..., None].float(), sample_stride(tokens))
    assert seen.sample.max() > 0


def test_every_linear_is_sampled_at_the_same_tokens() -> None:
    """200 positions are no multiple of the stride, 5 * 200 // 256 = 3."""
    model = random_model("llama")
    config = config_from_huggingface(model.config.to_dict())
    layer = LayerPlan(donor=0, num_key_value_heads=config.num_key_value_heads)
    plan = FoldPlan(
        num_attention_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        layers=tuple(layer.model_copy(update={"donor": index}) for index in range(config.num_hidden_layers)),
    )
    tokens = torch.randint(0, 97, (5, 200), generator=torch.Generator().manual_seed(0))
    weights, stride = dict(model.state_dict()), sample_stride(tokens)
    stream = ResidualStream.embed(config, plan, weights, tokens)
    for index in range(config.num_hidden_layers):
        seen = observe_layer(stream, load_block(config, plan, weights, index), stride)
        assert {len(linear.sample) for linear in seen.inputs.values()} == {5 * 67}
    head = observe_head(stream, RMSNorm(config.hidden_size, config.rms_norm_eps), stride)
    assert len(head.sample) == 5 * 67
