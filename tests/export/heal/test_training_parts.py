"""The parts of healing against plain references: attention's gradients, KL, the teacher's cache, low rank."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

from kvfold.export.heal.healed_adapter import merge
from kvfold.export.heal.objective.head_kl import head_kl
from kvfold.export.heal.starting_point import adapter_form
from kvfold.export.heal.student.low_rank import anchor, change_spectrum, fit_factors, share_ranks
from kvfold.export.heal.student.student import TrainedModel
from kvfold.export.heal.student.training_attention import TrainingAttention
from kvfold.export.heal.training.train import batches
from kvfold.export.model.decoder import Decoder
from kvfold.export.model.dense_attention import DenseAttention
from tests.export.heal.tiny_healing import TOKENS, tiny_healing
from tests.tiny_model import tiny_config, tiny_decoder, tiny_plan


class OnGpu(TrainingAttention):
    """Computes on the CPU as on a GPU."""

    in_blocks = TrainingAttention.fused


@pytest.mark.parametrize("head_sink", [False, True])
@pytest.mark.parametrize("block", [2, 48, 256])
@pytest.mark.parametrize("length", [20, 32, 33, 150])
@pytest.mark.parametrize("mixer_class", [TrainingAttention, OnGpu])
def test_attention_and_its_gradients_are_dense_attention_s(
    mixer_class: type[TrainingAttention],
    length: int,
    block: int,
    head_sink: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows are 32, with 4 sinks or learned ones; layers share caches, so gradients meet in the donor's."""
    set_block(monkeypatch, block)
    config = tiny_config()
    plan = tiny_plan(config, "character", head_sink=head_sink)
    decoder = tiny_decoder(config, plan).requires_grad_(True)
    tokens = torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(0))
    results: list[list[Tensor]] = []
    for mixer in (DenseAttention(config, plan), mixer_class(config, plan)):
        decoder.zero_grad()
        logits = decoder(tokens, mixer)
        logits.square().mean().backward()
        results.append(
            [logits.detach(), *(p.grad.clone() for p in decoder.parameters() if p.grad is not None)]
        )
    assert sum(gradient.shape == (config.num_attention_heads,) for gradient in results[1]) == 3 * head_sink
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))


def set_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Cut sequences into blocks of so many queries."""
    for module in ("block_attention", "window_attention"):
        monkeypatch.setattr(f"kvfold.export.heal.student.{module}.BLOCK", block)


def test_more_sinks_than_the_window_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, 16)
    config = tiny_config()
    plan = tiny_plan(config, "character")
    layer = plan.layers[0].model_copy(update={"sliding_window": 8, "sink_size": 20})
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 80, 16, generator=generator, requires_grad=True)
    keys, values = (torch.randn(1, 1, 80, 16, generator=generator, requires_grad=True) for _ in range(2))
    results: list[list[Tensor]] = []
    for mixer in (DenseAttention(config, plan), TrainingAttention(config, plan), OnGpu(config, plan)):
        output = mixer.attend(query, keys, values, layer, None)
        results.append([output, *torch.autograd.grad(output.square().sum(), (query, keys, values))])
    for expected, *others in zip(*results, strict=True):
        for found in others:
            assert torch.allclose(
                found, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max())
            )


def test_under_autocast_queries_of_a_float_linear_read_keys_of_an_int8_one() -> None:
    config = tiny_config()
    plan = tiny_plan(config, "character")
    layer = plan.layers[0]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 80, 16, generator=generator)
    keys, values = (torch.randn(1, 1, 80, 16, generator=generator) for _ in range(2))
    expected = DenseAttention(config, plan).attend(query, keys, values, layer, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = TrainingAttention(config, plan).attend(query.bfloat16(), keys, values, layer, None)
    assert layer.sliding_window is not None and layer.sliding_window < 80
    assert (found.float() - expected).abs().max() < 0.03


def test_kl_through_the_head_is_the_definition_and_zero_of_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(300, 24, generator=generator) for _ in range(2))
    head = torch.randn(97, 24, generator=generator)
    student.requires_grad_()
    loss = head_kl(student, teacher, head)
    (gradient,) = torch.autograd.grad(3 * loss, student)
    log_p, log_q = ((x @ head.T).log_softmax(-1) for x in (teacher, student))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    (expected_gradient,) = torch.autograd.grad(3 * expected, student)
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)
    assert head_kl(teacher, teacher, head) == 0


def test_the_model_in_training_computes_what_its_weights_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvfold.export.heal.student.student.matmul_dtype", lambda _: torch.float32)
    healing, folded = tiny_healing()
    expected = Decoder.from_weights(healing.config, healing.plan, folded).model(
        TOKENS, DenseAttention(healing.config, healing.plan)
    )
    model = TrainedModel(healing.config, healing.plan, folded)
    assert torch.allclose(model.hidden(TOKENS), expected, rtol=1e-4, atol=1e-4)


def test_the_model_in_training_computes_what_its_adapter_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors and changes of low rank included; what is left is the adapter's rounding to float16."""
    monkeypatch.setattr("kvfold.export.heal.student.student.matmul_dtype", lambda _: torch.float32)
    healing, folded = tiny_healing()
    config, plan = healing.config, healing.plan
    form = adapter_form(config, healing.base, folded, plan, TOKENS, rank=8)
    assert any(name.endswith(":factors") for name in form) and any(name.endswith(":left") for name in form)
    merged = merge(config, healing.base, plan, {name: tensor.half() for name, tensor in form.items()})
    expected = Decoder.from_weights(config, plan, merged).model(TOKENS, DenseAttention(config, plan))
    found = healing.student(form).hidden(TOKENS)
    # In the mean: how float16 rounds single weights differs by machine, and this model has small outputs.
    assert (found - expected).norm() < 3e-3 * expected.norm()


@pytest.mark.parametrize("projection", ["q_proj", "o_proj"])
def test_factors_and_a_low_rank_change_are_found_again(projection: str) -> None:
    healing, _ = tiny_healing()
    config, name = healing.config, f"model.layers.0.self_attn.{projection}.weight"
    generator = torch.Generator().manual_seed(0)
    base = healing.base[name]
    shapes = {"q_proj": (4, 8, 2), "o_proj": (2, 16, 16)}
    factors = torch.randn(shapes[projection], generator=generator).half()
    fitted = fit_factors(
        name, base, anchor(name, base, factors, config, healing.plan).float(), config, healing.plan
    )
    assert torch.allclose(fitted.float(), factors.float(), atol=2e-3)
    left, right = torch.randn(len(base), 4, generator=generator), torch.randn(4, base.shape[1])
    x = torch.randn(200, base.shape[1], generator=generator)
    spectrum = change_spectrum(base + left @ right, base, x.T @ x / 200)
    found = spectrum.cut(4)
    assert torch.allclose(found[0] @ found[1], left @ right, atol=1e-4)
    whole = (x @ (base + left @ right).T).square().sum()
    share = (x @ (left @ right).T).square().sum() / whole
    assert torch.allclose(spectrum.energies.sum().float(), share, rtol=5e-2)  # the metric is damped
    assert spectrum.energies[4:].sum() < 1e-9


def test_no_change_starts_as_one_that_can_learn() -> None:
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([1, 9, 1, 8, 1, 7])
    mixed = x @ torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))[0]
    left, right = change_spectrum(weight, weight, mixed.T @ mixed / 200).cut(3)
    assert not left.any()
    read = mixed @ right.T
    assert torch.allclose(read.T @ read, torch.eye(3) * read.square().sum() / 3, atol=1e-3 * read.norm() ** 2)
    kept = torch.linalg.lstsq(read, mixed).solution
    assert (read @ kept).square().sum() > 0.97 * mixed.square().sum()


def test_ranks_go_to_the_largest_terms_and_keep_their_mean() -> None:
    falling = torch.arange(20.0, 0, -1)
    energies = {"a": falling, "b": falling / 30, "c": torch.zeros(20)}
    assert share_ranks(energies, mean_rank=4) == {"a": 8, "b": 3, "c": 1}
    assert share_ranks(energies, mean_rank=20) == {"a": 20, "b": 20, "c": 20}


def test_one_changed_matrix_among_many_leaves_the_others_room() -> None:
    energies = {"changed": torch.ones(20)} | {name: torch.zeros(20) for name in "abcdefg"}
    ranks = share_ranks(energies, mean_rank=4)
    assert ranks.pop("changed") == 8
    assert min(ranks.values()) == 3 and sum(ranks.values()) == 24


def test_every_sequence_is_seen_once_before_any_is_seen_twice() -> None:
    lengths = torch.full((7,), 10)
    rows = torch.cat(list(islice(batches(lengths, batch_tokens=35, seed=0), 7))).reshape(3, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in rows.tolist())
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 3
