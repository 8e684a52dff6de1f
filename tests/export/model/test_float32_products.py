"""bfloat16 multiplied in float32: the same values, and the same model but for the order of sums."""

from __future__ import annotations

import copy

import torch
from torch import nn

from kvfold.export.model.decoder import Decoder
from kvfold.export.model.families import config_from_huggingface
from kvfold.export.model.matmul_dtype import multiply_in_float32
from tests.export.tiny_checkpoints import random_model
from tests.tiny_model import dense_logits, tiny_plan


def test_where_sums_are_exact_the_bits_are_the_same() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 8).to(torch.bfloat16)
    for parameter in linear.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape).to(torch.bfloat16)
    x = torch.randint(-40, 41, (5, 16)).to(torch.bfloat16)
    expected = linear(x)
    assert not torch.equal(expected.float(), x.float() @ linear.weight.float().T + linear.bias.float())
    multiply_in_float32(linear)
    found = linear(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_a_model_is_far_nearer_to_its_bfloat16_self_than_that_is_to_float32() -> None:
    model = random_model("llama")
    config = config_from_huggingface(model.config.to_dict()).model_copy(update={"tie_word_embeddings": True})
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    decoder = Decoder.from_weights(config, tiny_plan(config, "identity"), weights)
    token_ids = torch.randint(1, 97, (2, 40), generator=torch.Generator().manual_seed(0))

    rounded = copy.deepcopy(decoder).to(torch.bfloat16)
    expected, in_float32 = dense_logits(rounded, token_ids), dense_logits(decoder, token_ids)
    multiply_in_float32(rounded)
    found = dense_logits(rounded, token_ids)
    assert found.dtype == rounded.model.embed_tokens.weight.dtype == torch.bfloat16
    assert _distance(found, expected) < 0.1 * _distance(expected, in_float32)


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left.float() - right.float()).square().mean().item()
