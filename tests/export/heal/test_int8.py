"""Step C: what training sees is what is deployed; it goes on from any kill, and the deployed model gains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvfold.export.fold.fold import fold_weights
from kvfold.export.graph.lower_cpu import lower_for_cpu
from kvfold.export.heal.heal import heal
from kvfold.export.heal.healed_adapter import merge
from kvfold.export.heal.healing import Healing
from kvfold.export.heal.objective.losses import EndToEndLoss, pick
from kvfold.export.heal.student.int8_deployment import Int8Deployment
from kvfold.export.heal.student.int8_rounding import Int8Linear, Rounding
from kvfold.export.heal.student.student import TrainedModel
from kvfold.export.heal.student.trainable import trained_names
from kvfold.export.heal.student.training_attention import TrainingAttention
from kvfold.export.model.decoder import Decoder
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.quantize.calibrate import Calibrated, calibrate
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.contract.progress import unheard
from kvfold.plugins.int8_linear.schema import ActivationBits
from kvfold.runtime.engine.engine_config import EngineConfig
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from tests.export.graph.tiny_graphs import graph_of
from tests.export.heal.tiny_healing import SETTINGS, TEXT, TOKENS, tiny_healing
from tests.export.quantize.fake_quantized import FakeQuantizedDecoder
from tests.paging import Pager, budget_of
from tests.tiny_model import dense_logits

HORIZON = Preset.model_validate(
    {"preset": "horizon", "sliding_window": 16, "sink_size": 2, "global_every": 4, "kv_dtype": "int8"}
)
# Errors of this model's linears are 0.002 to 0.015: thresholds among them give every precision.
MIXED = QuantizeSettings(max_relative_error=0.008, max_weight_error=0.0062)
# Nothing is raised above int8, however much it hurts; only the head has 16 bits.
HARSH = QuantizeSettings(smooth=False, max_relative_error=9, max_weight_error=9)
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def kl(first: Tensor, second: Tensor) -> float:
    """Mean KL of two models' logits, nat a token."""
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def calibrated(healing: Healing, weights: Mapping[str, Tensor]) -> Calibrated:
    return calibrate(healing.config, weights, healing.plan, TOKENS, healing.quantize)


def student(healing: Healing, weights: dict[str, Tensor], deployed: Calibrated) -> TrainedModel:
    int8 = Int8Deployment.of(healing.config, healing.plan, deployed)
    names = trained_names(healing.config, healing.plan, weights)
    return TrainedModel(healing.config, healing.plan, weights, {name: weights[name] for name in names}, int8)


def loss_of(healing: Healing, model: TrainedModel) -> EndToEndLoss:
    return EndToEndLoss(healing.teacher(), model, healing.head, TEXT, scored=0.25, seed=0)


def logits(loss: EndToEndLoss, tokens: Tensor) -> Tensor:
    """The student's, [B, L, vocab]."""
    hidden = loss.student.hidden(tokens).flatten(0, 1)
    hidden = hidden if loss.rounding is None else loss.rounding.tokens(hidden)
    return (hidden @ loss.student_head.T).reshape(*tokens.shape, -1)


def with_outliers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that give every kind of smoothing something to do."""
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    weights["model.layers.1.input_layernorm.weight"][3] *= 50
    weights["model.layers.0.mlp.up_proj.weight"][5] *= 50
    weights["model.layers.0.self_attn.v_proj.weight"][1] *= 50
    return weights


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices multiply in float32 on every machine."""
    monkeypatch.setattr("kvfold.export.heal.student.student.matmul_dtype", lambda _: torch.float32)


def mixed_model(family: str) -> tuple[Healing, dict[str, Tensor], Calibrated]:
    """A model with linears of every precision; only llama's heads are folded, others have windows alone."""
    plan = None
    if not family.startswith("llama"):
        plan = build_plan(HORIZON, tiny_healing()[0].config.attention_shape)
    healing, folded = tiny_healing(family=family, plan=plan)
    healing, weights = replace(healing, quantize=MIXED), with_outliers(folded)
    deployed = calibrated(healing, weights)
    assert set(deployed.precision.precision.values()) == {"int8", "int8_a16", "float32"}
    assert {name.split(".")[-1] for name in deployed.smoothing} >= {"qkv_proj", "o_proj", "down_proj"}
    return healing, weights, deployed


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "llama-biased"])
@torch.no_grad()
def test_the_student_is_the_deployed_model(family: str) -> None:
    """Unsmoothed tensors, rounded in smoothed space, against smoothed tensors that are simply rounded.

    What is left is float rounding, and where it decides a tie, one integer of one activation.
    """
    healing, weights, deployed = mixed_model(family)
    loss = loss_of(healing, student(healing, weights, deployed))
    expected = FakeQuantizedDecoder(healing.config, healing.plan, deployed)(TOKENS)
    unrounded = dense_logits(Decoder.from_weights(healing.config, healing.plan, weights), TOKENS)
    error = (logits(loss, TOKENS) - expected).norm() / (unrounded - expected).norm()
    assert error < 0.01
    identity = build_plan(Preset(preset="identity"), healing.config.attention_shape)
    original = dense_logits(Decoder.from_weights(healing.config, identity, healing.base), TOKENS)
    first, second = (pick(x, loss.positions[0]) for x in (original, expected))
    assert float(loss(torch.arange(len(TOKENS)))) == pytest.approx(kl(first, second), rel=1e-3)


@pytest.mark.usefixtures("float32")
@torch.no_grad()
def test_the_student_is_the_engine(tmp_path: Path) -> None:
    healing, weights, deployed = mixed_model("llama")
    loss = loss_of(healing, student(healing, weights, deployed))
    decoder = Decoder.from_weights(healing.config, healing.plan, deployed.weights)
    graph = graph_of(decoder, deployed.scales, tmp_path)
    (tmp_path / "cpu").mkdir()
    lower_for_cpu(graph, tmp_path / "cpu", healing.plan, deployed.precision.precision)
    facts = EngineConfig(
        target="cpu", backend="cpu", vocab_size=97, max_context_length=256, fingerprint="test"
    )
    files = EngineFiles(tmp_path / "cpu", facts, healing.plan)
    engine = OnnxRuntimeEngine.load(files, budget_of(files, 16), threads=2)
    distances, divergences = [], []
    for tokens in TOKENS[:4]:
        found = torch.from_numpy(engine.execute(Pager(healing.plan, 16).step({0: tokens.tolist()})).copy())
        expected, unrounded = logits(loss, tokens[None])[0], dense_logits(decoder, tokens[None])[0]
        distances.append((found - expected).norm(dim=-1) / (unrounded - expected).norm(dim=-1))
        divergences.append([kl(found, expected), kl(found, unrounded)])
    assert torch.cat(distances).median() < 0.05
    of_student, of_float = torch.tensor(divergences).mean(0)
    assert of_student < 0.1 * of_float


@pytest.mark.parametrize("bits", [8, 16])
def test_gradients_go_straight_through_an_int8_linear(bits: ActivationBits) -> None:
    """They are those of a float linear on the rounded input and the rounded weight."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 300, 24, generator=generator), torch.randn(40, 24, generator=generator)
    smoothing = torch.exp2(torch.randint(-3, 4, (24,), generator=generator).float())
    linear = torch.nn.Linear(24, 40)
    linear.weight.data = weight
    rounding = Rounding(bits, smoothing)
    learning, frozen = (Int8Linear(linear, rounding, torch.float32, given) for given in (None, weight))
    given = x.clone().requires_grad_()
    learning(given).square().sum().backward()
    assert given.grad is not None and linear.weight.grad is not None and linear.bias.grad is not None

    integers, scale = rounding.weight(weight)
    rounded_weight = (integers * scale[:, None] / smoothing).requires_grad_()
    rounded = rounding.tokens(x.flatten(0, 1)).requires_grad_()
    y = torch.nn.functional.linear(rounded, rounded_weight, linear.bias.detach())
    to_rounded, to_weight = torch.autograd.grad(y.square().sum(), (rounded, rounded_weight))
    for found, expected in (
        (learning(x).flatten(0, 1), y),
        (given.grad.flatten(0, 1), to_rounded),
        (linear.weight.grad, to_weight),
    ):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * float(expected.detach().abs().max()))

    alone = x.clone().requires_grad_()
    frozen(alone).square().sum().backward()
    assert torch.equal(frozen(x), learning(x)) and alone.grad is not None
    assert torch.equal(alone.grad, given.grad)


def test_no_gradient_reaches_what_a_cache_cuts_off() -> None:
    healing, _ = tiny_healing()
    shape = (1, 1, healing.config.head_dim)
    mixer = TrainingAttention(healing.config, healing.plan, {"key_scale.0": torch.full(shape, 0.5)})
    x = torch.linspace(-100, 100, 160).reshape(1, 10, 1, 16).requires_grad_()
    rounded = mixer._round("key_scale.0", x)
    assert torch.equal(rounded, DenseAttention._round(mixer, "key_scale.0", x))
    (gradient,) = torch.autograd.grad(rounded.sum(), x)
    assert torch.equal(gradient, ((x / 0.5).round().clamp(-128, 127) == (x / 0.5).round()).float())
    assert mixer._round("value_scale.0", x) is x, "a cache without scales is not int8"


def lopsided() -> tuple[Healing, dict[str, Tensor]]:
    """A model whose weights int8 rounds badly: one small channel behind each norm has large columns."""
    healing, _ = tiny_healing()
    base = {name: tensor.clone() for name, tensor in healing.base.items()}
    for layer in range(healing.config.num_hidden_layers):
        for norm, readers in READERS.items():
            base[f"model.layers.{layer}.{norm}.weight"][5] /= 100
            for reader in readers:
                base[f"model.layers.{layer}.{reader}.weight"][:, 5] *= 100
    folded = fold_weights(healing.config, base, healing.plan, TOKENS)
    return replace(healing, base=base, plan=folded.plan, quantize=HARSH), dict(folded.weights)


@torch.no_grad()
def cost(healing: Healing, weights: Mapping[str, Tensor]) -> tuple[float, float]:
    """Mean KL(original || model) of the float model and of the deployed one."""
    identity = build_plan(Preset(preset="identity"), healing.config.attention_shape)
    original = dense_logits(Decoder.from_weights(healing.config, identity, healing.base), TOKENS)
    in_float = dense_logits(Decoder.from_weights(healing.config, healing.plan, weights), TOKENS)
    deployed = FakeQuantizedDecoder(healing.config, healing.plan, calibrated(healing, weights))(TOKENS)
    return kl(original, in_float), kl(original, deployed)


def test_step_c_lowers_what_int8_costs_and_changes_nothing_else(tmp_path: Path) -> None:
    """It goes on from the adapter that steps A and B end with, and is calibrated anew to be deployed."""
    healing, folded = lopsided()
    adapter = heal(healing, folded, tmp_path / "float", "key", unheard)
    before = merge(healing.config, healing.base, healing.plan, adapter)
    only_int8 = {
        "layerwise_tokens": 0,
        "tokens": 0,
        "int8_tokens": 9 * TOKENS.numel(),
        "int8_learning_rate": 2e-3,
    }
    healing = replace(healing, settings=SETTINGS.model_copy(update=only_int8))
    adapter = heal(healing, before, tmp_path / "int8", "key", unheard, start=adapter)
    after = merge(healing.config, healing.base, healing.plan, adapter)
    trained = trained_names(healing.config, healing.plan, after)
    assert all(torch.equal(after[name], before[name]) for name in after if name not in trained)
    assert not any(torch.equal(after[name], before[name]) for name in trained)

    lines = [json.loads(line) for line in (tmp_path / "int8" / "loss.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {"int8"}
    epochs = torch.tensor([line["loss"] for line in lines]).reshape(-1, 6).mean(1)
    assert epochs[-1] < 0.9 * epochs[0]
    (float_before, int8_before), (float_after, int8_after) = cost(healing, before), cost(healing, after)
    assert int8_before > 1.2 * float_before, "int8 hurts"
    assert int8_after < 0.95 * int8_before
    assert int8_after - float_after < 0.5 * (int8_before - float_before)
