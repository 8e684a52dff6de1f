"""Calibration to 4 bits: own blocks stay, other weights are rounded, what costs too much runs as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.calibrate import Calibrated, calibrate
from kvfold.export.quantize.int4.stored_blocks import StoredBlocks
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.export.weights.layer_journal import LayerJournal
from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.int4_linear.packing import dequantize_weight, quantize_weight
from tests.export.quantize.test_quantize import TOKENS, Weights, logits, make_plan, model

INT4 = QuantizeSettings(weights="int4", max_int4_error=1)


def in_blocks(weights: Weights, *, symmetric: bool = False) -> Weights:
    """Projections in blocks of 4 bits, as a GGUF file has them; the embedding stays as it is."""
    return {
        name: torch.from_numpy(dequantize_weight(quantize_weight(tensor.numpy(), symmetric=symmetric)))
        if "_proj.weight" in name
        else tensor
        for name, tensor in weights.items()
    }


def run(config: ModelConfig, weights: Weights, settings: QuantizeSettings = INT4) -> Calibrated:
    return calibrate(config, weights, make_plan(config), TOKENS, settings)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "llama-biased"])
def test_a_checkpoint_s_own_blocks_are_kept(family: str, symmetric: bool) -> None:
    config, weights = model(family)
    weights = in_blocks(weights, symmetric=symmetric)
    weights["model.layers.0.mlp.up_proj.weight"][:32] *= 64
    calibrated = run(config, weights)
    linears = calibrated.precision.linears
    own = {name for name in linears if name != "lm_head"}
    assert {name for name in linears if linears[name].exact} == own
    assert all(linears[name].symmetric == symmetric for name in own)
    assert {name.partition(":")[0] for name in calibrated.blocks} == {"lm_head"}
    assert not calibrated.smoothing
    blocks = StoredBlocks(calibrated.precision, calibrated.blocks)
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj"):
        packed = name.replace("up_proj", "gate_up_proj")
        parts = [name.replace("up_proj", "gate_proj")] * (packed != name) + [name]
        weight = torch.cat([calibrated.weights[f"{part}.weight"] for part in parts])
        assert torch.equal(blocks.of(packed, weight).values, weight)
    assert torch.equal(
        logits(config, make_plan(config), calibrated.weights), logits(config, make_plan(config), weights)
    )


def test_only_the_rounding_of_activations_is_left_where_blocks_are_kept() -> None:
    """In 16 bits of activations nearly nothing."""
    config, weights = model("llama")
    weights = in_blocks(weights)
    fine = run(config, weights, INT4.model_copy(update={"max_relative_error": 1e-9}))
    body = {name: linear for name, linear in fine.precision.linears.items() if name != "lm_head"}
    assert {linear.precision for linear in body.values()} == {"int4_a16"}
    assert max(linear.deployed_error for linear in body.values()) < 2e-4
    plain = run(config, weights)
    assert {linear.precision for linear in plain.precision.linears.values()} == {"int4"}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_other_weights_are_rounded_and_stored(family: str) -> None:
    config, weights = model(family)
    calibrated = run(config, weights)
    linears = calibrated.precision.linears
    assert not any(linear.exact for linear in linears.values())
    assert {name.partition(":")[0] for name in calibrated.blocks} == set(linears)
    assert {linear.precision for linear in linears.values()} == {"int4"}
    assert all(0.01 < linear.deployed_error < 0.12 for linear in linears.values())
    blocks = StoredBlocks(calibrated.precision, calibrated.blocks)
    name = "model.layers.1.self_attn.o_proj"
    weight = calibrated.weights[f"{name}.weight"]
    assert 0.01 < float((blocks.of(name, weight).values - weight).norm() / weight.norm()) < 0.12


def test_what_costs_too_much_runs_as_without_4_bits_and_is_listed() -> None:
    config, weights = model("llama")
    int8 = run(config, weights, QuantizeSettings())
    refused = run(config, weights, QuantizeSettings(weights="int4", max_int4_error=1e-6))
    assert refused.precision.precision == int8.precision.precision and not refused.blocks
    assert set(refused.precision.raised) == set(refused.precision.linears)
    assert all(torch.equal(refused.factors[name], int8.factors[name]) for name in int8.factors)
    errors = {name: linear.relative_error for name, linear in run(config, weights).precision.linears.items()}
    limit = sorted(value for value in errors.values() if value is not None)[4]
    mixed = run(config, weights, QuantizeSettings(weights="int4", max_int4_error=limit)).precision
    kinds = {precision.partition("_")[0] for precision in mixed.precision.values()}
    assert kinds == {"int4", "int8"} and "int4" in mixed.summary and "int8" in mixed.summary


def test_a_calibration_goes_on_after_a_kill(tmp_path: Path) -> None:
    config, weights = model("llama")
    whole = run(config, weights)

    class Killed(LayerJournal):
        def finish(self, layer: int, *rest: Any) -> None:
            super().finish(layer, *rest)
            if layer == 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(
            config, weights, make_plan(config), TOKENS, INT4, journal=Killed(tmp_path / "work", "key", 0.0)
        )
    resumed = calibrate(
        config, weights, make_plan(config), TOKENS, INT4, journal=LayerJournal(tmp_path / "work", "key", 0.0)
    )
    assert resumed.precision == whole.precision and set(resumed.blocks) == set(whole.blocks)
    assert all(torch.equal(resumed.blocks[name], whole.blocks[name]) for name in whole.blocks)
    again = LayerJournal(tmp_path / "work", "key", 0.0)  # killed after the head, before the stage was written
    assert (
        calibrate(config, weights, make_plan(config), TOKENS, INT4, journal=again).precision
        == whole.precision
    )


def test_blocks_that_are_not_there_are_an_error() -> None:
    config, weights = model("llama")
    name = "model.layers.0.self_attn.o_proj"
    blocks = StoredBlocks(run(config, weights).precision, {})
    with pytest.raises(ExportError, match=f"{name} is to run in 4 bits and has no blocks"):
        blocks.of(name, weights[f"{name}.weight"])


def test_no_weights_cannot_be_in_4_bits() -> None:
    with pytest.raises(ValueError, match="contradict"):
        QuantizeSettings(weights="int4", linears="none")
