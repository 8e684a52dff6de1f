"""Training models of other families: attention with a scale or capped logits, KL through a capped head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvfold.export.heal.objective.head_kl import head_kl
from kvfold.export.heal.student.trainable import changed_layers, trained_names
from kvfold.export.heal.student.training_attention import TrainingAttention
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.fold_plan import FoldPlan
from tests.export.switched_models import SWITCHED, switched_model
from tests.tiny_model import tiny_config, tiny_decoder


@pytest.mark.parametrize("name", SWITCHED)
def test_attention_and_its_gradients_are_dense_attention_s(name: str) -> None:
    config = tiny_config(**SWITCHED[name])
    plan = FoldPlan.of(config.attention_shape)
    decoder = tiny_decoder(config, plan).requires_grad_(True)
    tokens = torch.randint(0, 97, (2, 50), generator=torch.Generator().manual_seed(0))
    results: list[list[Tensor]] = []
    for mixer in (DenseAttention(config, plan), TrainingAttention(config, plan)):
        decoder.zero_grad()
        logits = decoder(tokens, mixer)
        logits.square().mean().backward()
        gradients = [p.grad.clone() for p in decoder.parameters() if p.grad is not None]
        results.append([logits.detach(), *gradients])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_kl_through_a_capped_head_is_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(300, 24, generator=generator) for _ in range(2))
    head = torch.randn(97, 24, generator=generator)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(head_kl(student, teacher, head, softcap=2.0), student)
    log_p, log_q = ((2 * torch.tanh(x @ head.T / 2)).log_softmax(-1) for x in (teacher, student))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    (expected_gradient,) = torch.autograd.grad(expected, student)
    assert torch.allclose(head_kl(student, teacher, head, softcap=2.0), expected, rtol=1e-5)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_what_is_trained_are_layers_that_differ_from_the_checkpoint_and_all_their_norms() -> None:
    config, weights = switched_model("gemma2")
    own = FoldPlan.of(config.attention_shape)
    with pytest.raises(PlanError, match="nothing to heal"):
        changed_layers(config, own)
    plan = own.with_layers([0], sliding_window=8)
    assert changed_layers(config, plan) == [0]
    norms = {name for name in trained_names(config, plan, weights) if "layernorm" in name}
    assert len(norms) == 4 and all(name.startswith("model.layers.0.") for name in norms)
