"""int8 calibration: smoothing is exact, scales cover what was seen, the worst linears stay float."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from kvfold.export.model.decoder import Decoder
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.model.families import config_from_huggingface
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.calibrate import Calibrated, calibrate
from kvfold.export.quantize.fake_int8_linear import FakeInt8Linear, linear_weight
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan
from kvfold.plugins.int8_linear.inputs import Case, make_inputs
from kvfold.plugins.int8_linear.packing import quantize_weight
from kvfold.plugins.int8_linear.reference import int8_linear
from tests.export.quantize.fake_quantized import FakeQuantizedDecoder
from tests.export.tiny_checkpoints import random_model
from tests.tiny_model import dense_logits

TOKENS = torch.randint(0, 97, (8, 48), generator=torch.Generator().manual_seed(1))
HELD_OUT = torch.randint(0, 97, (2, 64), generator=torch.Generator().manual_seed(2))
ALL_INT8 = QuantizeSettings(max_relative_error=1)
Weights = dict[str, Tensor]


def model(family: str, **changes: object) -> tuple[ModelConfig, Weights]:
    built = random_model(family, **changes)
    weights = dict(built.state_dict())
    config = config_from_huggingface(built.config.to_dict())
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return config, weights


def make_plan(config: ModelConfig, donors: tuple[int, ...] = (0, 1)) -> FoldPlan:
    layers = tuple(
        LayerPlan(donor=donor, num_key_value_heads=config.num_key_value_heads, kv_dtype="int8")
        for donor in donors
    )
    return FoldPlan(num_attention_heads=config.num_attention_heads, head_dim=config.head_dim, layers=layers)


def shared(weights: Weights, layer: int) -> Weights:
    """The weights with one layer made a consumer."""
    dropped = [f"model.layers.{layer}.self_attn.{kind}" for kind in ("k_proj", "v_proj", "k_norm")]
    return {name: tensor for name, tensor in weights.items() if name.rsplit(".", 1)[0] not in dropped}


def logits(config: ModelConfig, plan: FoldPlan, weights: Mapping[str, Tensor]) -> Tensor:
    result: Tensor = dense_logits(Decoder.from_weights(config, plan, weights), HELD_OUT)
    return result


@pytest.mark.parametrize("donors", [(0, 1), (0, 0)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "llama-biased"])
def test_smoothing_changes_no_logit_bit(family: str, tied: bool, donors: tuple[int, ...]) -> None:
    config, weights = model(family, tie_word_embeddings=tied)
    weights["model.layers.1.input_layernorm.weight"][3] *= 50  # something to smooth
    weights["model.layers.0.mlp.up_proj.weight"][5] *= 50
    if donors == (0, 0):
        weights = shared(weights, 1)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    plan = make_plan(config, donors)
    calibrated = calibrate(config, weights, plan, TOKENS, ALL_INT8)
    assert all(torch.equal(weights[name], before[name]) for name in weights), "inputs were changed"
    changed = {name for name in weights if not torch.equal(weights[name], calibrated.weights[name])}
    assert {"model.layers.1.input_layernorm.weight", "model.layers.0.mlp.up_proj.weight"} <= changed
    assert torch.equal(logits(config, plan, calibrated.weights), logits(config, plan, weights))


def test_smoothing_lowers_the_error_that_outliers_cause() -> None:
    config, weights = model("llama")
    weights["model.layers.0.input_layernorm.weight"][3] *= 50
    weights["model.layers.0.self_attn.q_proj.weight"][:, 3] /= 50
    smooth, plain = (
        calibrate(
            config, weights, make_plan(config), TOKENS, QuantizeSettings(smooth=on, max_relative_error=1)
        ).precision.linears["model.layers.0.self_attn.qkv_proj"]
        for on in (True, False)
    )
    assert smooth.relative_error is not None and plain.relative_error is not None
    assert smooth.relative_error < 0.7 * plain.relative_error


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_static_scales_cover_what_was_seen(family: str) -> None:
    """No key, at any position, no value and no activation of the calibration text is clipped."""
    config, weights = model(family)
    plan = make_plan(config)
    calibrated = calibrate(config, weights, plan, TOKENS, ALL_INT8)
    decoder = Decoder.from_weights(config, plan, calibrated.weights)
    seen: dict[str, float] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        module.register_forward_pre_hook(lambda _, args: seen.update({name: float(args[0].abs().max())}))

    for name in calibrated.precision.linears.keys() - {"lm_head"}:  # 16-bit activations have no scale
        watch(name, decoder.get_submodule(name))
    mixer = DenseAttention(config, plan)
    decoder(TOKENS, mixer)
    for layer, cached in mixer.keys_values.items():
        for kind, tensor in zip(("key_scale", "value_scale"), cached, strict=True):
            scale = calibrated.scales[f"{kind}.{layer}"]
            assert scale.shape == (config.num_key_value_heads, 1, config.head_dim)
            assert bool((tensor.abs() <= 127.001 * scale[:, 0]).all())
    for name, largest in seen.items():
        scale = calibrated.scales[f"activation_scale.{name}"]
        assert scale.shape == () and largest == pytest.approx(127 * float(scale), rel=1e-3)


def test_only_int8_banks_have_cache_scales() -> None:
    config, weights = model("llama")
    plan = make_plan(config)
    layers = (plan.layers[0], plan.layers[1].model_copy(update={"kv_dtype": "float32"}))
    scales = calibrate(config, weights, plan.model_copy(update={"layers": layers}), TOKENS).scales
    caches = {name for name in scales if not name.startswith("activation_scale.")}
    assert caches == {"key_scale.0", "value_scale.0"}


@pytest.mark.parametrize(("outlier", "precision"), [(12, "int8_a16"), (300, "float32")])
def test_a_linear_with_an_outlier_runs_higher_and_is_listed(outlier: int, precision: str) -> None:
    """One channel of the input is so much larger than the rest that it takes all their integers."""
    config, weights = model("llama")
    harmed = "model.layers.1.self_attn.qkv_proj"
    weights["model.layers.1.input_layernorm.weight"][3] *= outlier
    for kind in "qkv":
        weights[f"model.layers.1.self_attn.{kind}_proj.weight"][:, 3] /= outlier
    calibrated = calibrate(config, weights, make_plan(config), TOKENS, QuantizeSettings(smooth=False))
    assert calibrated.precision.raised[0] == harmed
    assert set(calibrated.precision.raised) == {harmed, "lm_head"}
    assert calibrated.precision.linears[harmed].precision == precision
    assert calibrated.precision.linears[harmed].deployed_error < 0.02
    assert f"activation_scale.{harmed}" not in calibrated.scales
    quantized = FakeQuantizedDecoder(config, make_plan(config), calibrated)
    is_float = isinstance(quantized.decoder.get_submodule(harmed), torch.nn.Linear)
    assert is_float == (precision == "float32")
    smoothed = calibrate(config, weights, make_plan(config), TOKENS)
    assert smoothed.precision.raised == ["lm_head"]


def test_linears_none_touches_nothing_but_the_cache() -> None:
    config, weights = model("llama")
    calibrated = calibrate(config, weights, make_plan(config), TOKENS, QuantizeSettings(linears="none"))
    assert all(calibrated.weights[name] is weights[name] for name in weights)
    assert set(calibrated.precision.precision.values()) == {"float32"}
    assert set(calibrated.scales) == {
        f"{kind}_scale.{layer}" for kind in ("key", "value") for layer in (0, 1)
    }


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_fake_quantized_decoder_stays_close(family: str) -> None:
    config, weights = model(family)
    plan = make_plan(config)
    calibrated = calibrate(config, weights, plan, TOKENS, ALL_INT8)
    expected = logits(config, plan, weights)
    actual = FakeQuantizedDecoder(config, plan, calibrated)(HELD_OUT)
    error = (actual - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.1


def test_calibration_is_deterministic() -> None:
    config, weights = model("llama")

    def run() -> Calibrated:
        return calibrate(config, weights, make_plan(config), TOKENS)

    first, second = run(), run()
    assert first.precision == second.precision
    assert all(torch.equal(first.scales[name], second.scales[name]) for name in first.scales)
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_the_fake_linear_equals_the_reference() -> None:
    inputs = make_inputs(Case(tokens=9, in_features=70, out_features=33, bias=True, zero_row=True))
    assert inputs.bias is not None
    x, weight, bias = (torch.from_numpy(array) for array in (inputs.x, inputs.weight, inputs.bias))
    quantized, scale = quantize_weight(inputs.weight)
    expected = int8_linear(x, torch.from_numpy(quantized), torch.from_numpy(scale), bias)
    torch.testing.assert_close(FakeInt8Linear(weight, bias)(x), expected)


def test_packed_linears_find_their_tensors() -> None:
    config, weights = model("qwen2")
    decoder = Decoder.from_weights(config, make_plan(config), weights)
    for name in ("model.layers.1.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj", "lm_head"):
        assert torch.equal(linear_weight(name, weights), decoder.get_submodule(name).get_parameter("weight"))


def test_its_layers_share_one_progress() -> None:
    """The whole is never done while the head is still to come."""
    told: list[tuple[float, str]] = []

    def listen(fraction: float, note: str = "") -> None:
        told.append((fraction, note))

    config, weights = model("llama")
    calibrate(config, weights, make_plan(config), TOKENS, None, listen)
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] < 1
    notes = list(dict.fromkeys(note for _, note in told))
    assert notes == ["layer 0 of 2", "layer 1 of 2", "the head"]
