"""Every way to merge heads gives a model, lossless where heads are equal; the closed form is the best one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvfold.export.fold.bank import BankStatistics, FoldedBank, Members, MergedHead
from kvfold.export.fold.baselines import METHODS, aligned_mean, joint_pca
from kvfold.export.fold.fold import FoldedModel, HowToFold, fold_weights
from kvfold.export.fold.fold_settings import FoldSettings
from kvfold.export.fold.keys import complex_from_halves, halves_from_complex
from kvfold.export.fold.projections import read_heads, write_heads
from kvfold.export.model.decoder import Decoder
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from tests.export.fold.test_fold import HELD_OUT, TOKENS, Weights, make_plan, max_difference, model
from tests.tiny_model import dense_logits

CLOSED_FORM = ("fitted-slots", "even-slots")
NO_REGRESSION = FoldSettings(ridge=1e12)
MEMBERS, SIZE, INPUTS = 3, 8, 20


def members(generator: torch.Generator) -> Members:
    """Random heads whose inputs are white."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    roots = random(MEMBERS, SIZE, SIZE)
    return Members(
        keys=random(MEMBERS, SIZE, INPUTS),
        values=random(MEMBERS, SIZE, INPUTS),
        gram=torch.eye(INPUTS, dtype=torch.float64),
        rotated_mean=torch.zeros(SIZE // 2, INPUTS, dtype=torch.complex128),
        query_power=random(MEMBERS, SIZE // 2).square(),
        output_metric=roots.mT @ roots,
    )


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def kl(config: ModelConfig, weights: Weights, folded: FoldedModel) -> float:
    """Mean KL(original || folded) on tokens the fold never saw."""
    identity = build_plan(Preset(preset="identity"), config.attention_shape)
    before = dense_logits(Decoder.from_weights(config, identity, weights), HELD_OUT).log_softmax(-1)
    after = dense_logits(Decoder.from_weights(config, folded.plan, folded.weights), HELD_OUT).log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_equal_heads_merge_without_loss(family: str, method: str) -> None:
    config, weights = model(family, num_key_value_heads=4)
    for layer in range(config.num_hidden_layers):
        for projection in ("k_proj", "v_proj"):
            heads = read_heads(weights, layer, projection, config.head_dim)
            heads[1::2] = heads[::2]
            write_heads(weights, layer, projection, heads)
    plan = make_plan(config, 2, [0, 1])
    for settings in (FoldSettings(), NO_REGRESSION):
        folded = fold_weights(config, weights, plan, TOKENS, HowToFold(settings, METHODS[method]))
        assert max_difference(config, weights, folded) <= 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj", "o_proj"])
def test_a_layer_that_a_model_was_grown_by_folds(projection: str, method: str) -> None:
    """Its projections begin at zero, which leaves nothing to weigh heads by (LLaMA Pro, arXiv 2401.02415)."""
    config, weights = model("llama")
    weights[f"model.layers.1.self_attn.{projection}.weight"].zero_()
    how = HowToFold(method=METHODS[method])
    folded = fold_weights(config, weights, make_plan(config, 1, [0, 1]), TOKENS, how)
    assert all(tensor.isfinite().all() for tensor in folded.weights.values())
    if projection in ("v_proj", "o_proj"):
        assert folded.errors[1] == 0


@pytest.mark.parametrize("method", METHODS)
def test_heads_and_layers_merge_under_a_window(method: str) -> None:
    config, weights = model("llama", num_hidden_layers=4)
    plan = make_plan(config, 1, [0, 0, 2, 2], window=16)
    folded = fold_weights(config, weights, plan, TOKENS, HowToFold(method=METHODS[method]))
    expected = fold_weights(config, weights, plan, TOKENS)
    assert {n: w.shape for n, w in folded.weights.items()} == {
        n: w.shape for n, w in expected.weights.items()
    }
    assert all(weight.isfinite().all() for weight in folded.weights.values())
    assert all(0 < error < 1 for error in folded.errors.values())


@pytest.mark.parametrize("settings", [FoldSettings(), NO_REGRESSION], ids=["regressed", "alone"])
@pytest.mark.parametrize("before", [2, 4])
def test_the_closed_form_is_the_best_of_all(before: int, settings: FoldSettings) -> None:
    """With either kind of slots, on heads that have nothing in common."""
    config, weights = model("llama", num_key_value_heads=before)
    plan = make_plan(config, 1, [0, 1])
    found = {
        name: kl(config, weights, fold_weights(config, weights, plan, TOKENS, HowToFold(settings, method)))
        for name, method in METHODS.items()
    }
    others = [value for name, value in found.items() if name not in CLOSED_FORM]
    assert max(found[name] for name in CLOSED_FORM) < min(others), found


def test_without_regression_the_mean_is_the_mean_of_the_weights() -> None:
    """The shortcut that the field takes, bit for bit: queries and outputs stay what they were."""
    config, weights = model("llama")
    how = HowToFold(NO_REGRESSION, METHODS["mean"])
    folded = fold_weights(config, weights, make_plan(config, 1, [0, 1]), TOKENS, how)
    for layer in range(2):
        for projection in ("k_proj", "v_proj"):
            expected = read_heads(weights, layer, projection, config.head_dim).mean(0, keepdim=True)
            found = read_heads(folded.weights, layer, projection, config.head_dim)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        for projection in ("q_proj", "o_proj"):
            name = f"model.layers.{layer}.self_attn.{projection}.weight"
            torch.testing.assert_close(folded.weights[name], weights[name], rtol=1e-6, atol=1e-7)


def test_turned_heads_are_aligned_exactly(generator: torch.Generator) -> None:
    """Heads that differ by an angle per frequency (keys) and a rotation (values) are one head."""
    found = members(generator)
    angles = torch.randn(MEMBERS, SIZE // 2, 1, generator=generator, dtype=torch.float64)
    turned = torch.polar(torch.ones_like(angles), angles) * complex_from_halves(found.keys[:1])
    rotations, _ = torch.linalg.qr(found.output_metric)
    heads = Members(
        halves_from_complex(turned),
        rotations @ found.values[0],
        found.gram,
        found.rotated_mean,
        found.query_power,
        found.output_metric,
    )
    merged = aligned_mean(heads)
    torch.testing.assert_close(merged.query_factors.mT @ merged.keys, heads.keys)
    torch.testing.assert_close(merged.value_factors @ merged.values, heads.values)


def test_aligned_heads_keep_their_norm(generator: torch.Generator) -> None:
    heads = members(generator)
    merged = aligned_mean(heads)
    for mean, before in ((merged.keys, heads.keys), (merged.values, heads.values)):
        assert float(mean.square().sum()) == pytest.approx(float(before.square().sum((1, 2)).mean()))


def test_joint_components_reach_the_optimum_at_a_distance_of_zero(generator: torch.Generator) -> None:
    """Eckart-Young in the metric of the query power: what is lost is the tail of the spectrum."""
    heads = members(generator)
    merged = joint_pca(heads)
    weights = torch.cat([heads.query_power, heads.query_power], dim=1).sqrt()[..., None]
    lost = (weights * (heads.keys - merged.query_factors.mT @ merged.keys)).square().sum()
    spectrum = torch.linalg.svdvals((weights * heads.keys).flatten(0, 1)).square()
    assert float(lost) == pytest.approx(float(spectrum[SIZE:].sum()))


def test_members_and_join_are_inverse(generator: torch.Generator) -> None:
    """Stored head s serves heads [s * r, (s + 1) * r) of every layer."""
    layers, heads, stored = 2, 4, 2
    keys = torch.arange(layers * heads, dtype=torch.float64)[:, None, None].expand(-1, SIZE, SIZE)
    keys = keys.reshape(layers, heads, SIZE, SIZE)
    statistics = BankStatistics(
        keys, keys, torch.eye(SIZE), torch.zeros(SIZE // 2, SIZE), keys[..., : SIZE // 2, 0], keys
    )
    parts = statistics.members(stored)
    assert [part.keys[:, 0, 0].tolist() for part in parts] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    merged = [MergedHead(part.keys[0], part.values[0], part.keys, part.values) for part in parts]
    bank = FoldedBank.join(merged, layers)
    assert torch.equal(bank.query_factors, keys) and torch.equal(bank.value_factors, keys)
    assert torch.equal(bank.keys, keys[0, ::2])
