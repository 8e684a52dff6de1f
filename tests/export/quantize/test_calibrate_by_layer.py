"""Calibration layer by layer against its definition on the whole model, and across a kill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kvfold.export.model.decoder import Decoder
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.calibrate import Calibrated, calibrate
from kvfold.export.quantize.fake_int8_linear import FakeInt8Linear, linear_weight, tensor_names
from kvfold.export.quantize.int8_trials import quantize_rows
from kvfold.export.quantize.observe import LinearInput, sample_stride
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.export.quantize.smooth import SmoothingGroup, scale_candidates, smoothing_groups
from kvfold.export.weights.layer_journal import LayerJournal
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.int8_linear.packing import quantize_weight
from kvfold.plugins.int8_linear.schema import ActivationBits
from tests.export.quantize.test_quantize import TOKENS, Weights, make_plan, model, shared
from tests.export.weights.killed_weights import KilledError, KilledWeights

SETTINGS = QuantizeSettings(max_relative_error=0.009)  # between the errors of this model's linears


def with_outliers(family: str, tied: bool = False) -> tuple[ModelConfig, Weights]:
    config, weights = model(family, tie_word_embeddings=tied, num_hidden_layers=3)
    for layer in range(3):
        weights[f"model.layers.{layer}.input_layernorm.weight"][3] *= 50
        weights[f"model.layers.{layer}.mlp.up_proj.weight"][5 + layer] *= 30
        weights[f"model.layers.{layer}.self_attn.v_proj.weight"][layer] *= 40
    return config, weights


def observe(config: ModelConfig, weights: Mapping[str, Tensor], plan: FoldPlan) -> dict[str, LinearInput]:
    """Inputs of every linear in one pass of the whole decoder."""
    decoder, seen = Decoder.from_weights(config, plan, weights), dict[str, LinearInput]()
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear):
            seen[name] = LinearInput.of(module.in_features, moment=False)
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen[name].add(args[0], sample_stride(TOKENS))
            )
    decoder(TOKENS, DenseAttention(config, plan))
    return seen


def error(x: Tensor, weight: Tensor, bits: ActivationBits = 8) -> float:
    y = x @ weight.T
    return float((FakeInt8Linear(weight, None, bits)(x) - y).norm() / y.norm())


def cost(
    group: SmoothingGroup, scale: Tensor | None, weights: Weights, seen: dict[str, LinearInput]
) -> float:
    """What a candidate costs the readers of a group."""
    columns = torch.ones(()) if scale is None else group.columns(scale)
    return sum(
        error(seen[reader].sample / columns, linear_weight(reader, weights) * columns) ** 2
        for reader in group.readers
    )


def smooth_whole(
    config: ModelConfig, plan: FoldPlan, weights: Weights, seen: dict[str, LinearInput]
) -> dict[str, Tensor]:
    """Smooth all groups in place, in order; returns what was done, by linear."""
    smoothing: dict[str, Tensor] = {}
    for group in smoothing_groups(config, plan):
        largest = {reader: linear_weight(reader, weights).abs().amax(0) for reader in group.readers}
        candidates = scale_candidates(group, seen, largest)
        costs = [cost(group, scale, weights, seen) for scale in candidates]
        scale = candidates[costs.index(min(costs))]
        if scale is None:
            continue
        for name in group.sources:
            weights[name] = weights[name] / scale.reshape(-1, *[1] * (weights[name].ndim - 1))
        for reader in group.readers:
            smoothing[reader] = group.columns(scale)
            for name in tensor_names(reader, weights):
                weights[name] = weights[name] * smoothing[reader]
    return smoothing


@pytest.mark.parametrize("donors", [(0, 1, 2), (0, 0, 2), (0, 1, 0)])
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen2", True)])
@torch.no_grad()
def test_layers_one_by_one_decide_what_the_whole_model_does(
    family: str, tied: bool, donors: tuple[int, ...]
) -> None:
    """Scales and weights to the bit; errors up to the order of their sums."""
    config, weights = with_outliers(family, tied)
    for layer, donor in enumerate(donors):
        weights = weights if donor == layer else shared(weights, layer)
    plan = make_plan(config, donors)
    calibrated = calibrate(config, weights, plan, TOKENS, SETTINGS)
    seen, smoothed = observe(config, weights, plan), dict(weights)
    smoothing = smooth_whole(config, plan, smoothed, seen)
    assert smoothing.keys() == calibrated.smoothing.keys() and any("o_proj" in name for name in smoothing)
    assert all(torch.equal(smoothing[name], calibrated.smoothing[name]) for name in smoothing)
    assert all(torch.equal(smoothed[name], calibrated.weights[name]) for name in smoothed)
    assert list(calibrated.precision.linears) == list(seen)
    for name, linear in calibrated.precision.linears.items():
        columns = smoothing.get(name, torch.ones(()))
        x, weight = seen[name].sample / columns, linear_weight(name, smoothed)
        assert linear.relative_error == pytest.approx(error(x, weight), rel=1e-5)
        finer = linear.precision == "int8_a16"
        assert linear.deployed_error == pytest.approx(error(x, weight, 16 if finer else 8), rel=1e-5)
        assert finer == (error(x, weight) > SETTINGS.max_relative_error or name == "lm_head")
        if not finer:
            largest = (seen[name].absmax / columns).amax() / 127
            assert torch.equal(calibrated.scales[f"activation_scale.{name}"], largest)
    assert {linear.precision for linear in calibrated.precision.linears.values()} == {"int8", "int8_a16"}


def test_rows_are_rounded_as_they_are_packed() -> None:
    weight = torch.randn(300, 70, generator=torch.Generator().manual_seed(3))
    weight[5] = 0
    integers, scale = quantize_rows(weight)
    expected, expected_scale = quantize_weight(weight.numpy())
    assert torch.equal(integers, torch.from_numpy(expected).float())
    assert torch.equal(scale, torch.from_numpy(expected_scale))


@pytest.mark.parametrize("weights_in", ["int8", "int4"])
@pytest.mark.parametrize("layer", [1, 2])
def test_after_a_kill_it_goes_on_and_finds_the_same(tmp_path: Path, layer: int, weights_in: str) -> None:
    """Killed while values wait for a later reader, too."""
    config, weights = with_outliers("llama")
    plan, weights = make_plan(config, (0, 1, 0)), shared(weights, 2)
    settings = SETTINGS.model_copy(update={"weights": weights_in})

    def run(given: Mapping[str, Tensor], folder: Path) -> Calibrated:
        return calibrate(
            config, given, plan, TOKENS, settings, journal=LayerJournal(folder, "key", seconds=0)
        )

    whole = run(weights, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(KilledWeights(weights, layer), tmp_path / "killed")
    rest = KilledWeights(weights)
    resumed = run(rest, tmp_path / "killed")
    assert not any(name.startswith("model.layers.0.mlp") for name in rest.read), "it went on, not anew"
    assert resumed.precision == whole.precision
    for found, expected in (
        (resumed.scales, whole.scales),
        (resumed.factors, whole.factors),
        (resumed.blocks, whole.blocks),
    ):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
