"""Laws of folding: what must not change does not, and truly low-rank models fold without loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvfold.export.fold.fold import FoldedModel, HowToFold, fold_weights
from kvfold.export.fold.fold_settings import FoldSettings
from kvfold.export.fold.keys import complex_from_halves, halves_from_complex
from kvfold.export.fold.projections import read_heads, write_heads
from kvfold.export.model.decoder import Decoder
from kvfold.export.model.families import config_from_huggingface
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.weights.layer_journal import LayerJournal
from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from tests.export.tiny_checkpoints import random_model
from tests.export.weights.killed_weights import KilledError, KilledWeights
from tests.tiny_model import dense_logits

TOKENS = torch.randint(0, 97, (16, 64), generator=torch.Generator().manual_seed(1))
HELD_OUT = torch.randint(0, 97, (2, 96), generator=torch.Generator().manual_seed(2))
Weights = dict[str, Tensor]


def model(family: str, **changes: int) -> tuple[ModelConfig, Weights]:
    """Config and weights (Hugging Face names) of a tiny random model."""
    built = random_model(family, **changes)
    return config_from_huggingface(built.config.to_dict()), dict(built.state_dict())


def make_plan(config: ModelConfig, heads: int, donors: Sequence[int], window: int | None = None) -> FoldPlan:
    """All layers with as many KV heads and the same window, layer i reading donors[i]."""
    layers = tuple(
        LayerPlan(donor=donor, num_key_value_heads=heads, sliding_window=window, sink_size=2 if window else 0)
        for donor in donors
    )
    return FoldPlan(num_attention_heads=config.num_attention_heads, head_dim=config.head_dim, layers=layers)


def max_difference(config: ModelConfig, weights: Weights, folded: FoldedModel) -> float:
    """max |dlogit| on tokens the fold never saw."""
    identity = build_plan(Preset(preset="identity"), config.attention_shape)
    before = dense_logits(Decoder.from_weights(config, identity, weights), HELD_OUT)
    after = dense_logits(Decoder.from_weights(config, folded.plan, folded.weights), HELD_OUT)
    return float((after - before).abs().max())


def copy_heads(weights: Weights, source: tuple[int, int], target: tuple[int, int]) -> None:
    """Make a KV head (layer, head) a per-frequency multiple (keys) and linear image (values) of another."""
    generator = torch.Generator().manual_seed(sum(target))
    size = 16
    parts = torch.randn(2, size // 2, 1, generator=generator, dtype=torch.float64)
    image = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    for projection in ("k_proj", "v_proj"):
        common = read_heads(weights, source[0], projection, size)[source[1]]
        heads = read_heads(weights, target[0], projection, size)
        if projection == "k_proj":
            heads[target[1]] = halves_from_complex(torch.complex(*parts) * complex_from_halves(common))
        else:
            heads[target[1]] = image @ common
        write_heads(weights, target[0], projection, heads)


@pytest.mark.parametrize("preset", ["identity", "horizon"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "llama-biased"])
def test_plans_that_fold_no_bank_leave_every_weight_alone(family: str, preset: str) -> None:
    config, weights = model(family)
    plan = build_plan(Preset.model_validate({"preset": preset}), config.attention_shape)
    folded = fold_weights(config, weights, plan, TOKENS)
    assert folded.weights.keys() == weights.keys() and not folded.errors
    assert all(folded.weights[name] is weights[name] for name in weights)


@pytest.mark.parametrize("family", ["llama", "qwen2", "llama-biased"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (4, 2), (4, 1)])
def test_low_rank_heads_fold_without_loss(family: str, before: int, after: int) -> None:
    config, weights = model(family, num_key_value_heads=before)
    merged = before // after
    for layer in range(config.num_hidden_layers):
        for head in range(before):
            if head % merged:
                copy_heads(weights, (layer, head - head % merged), (layer, head))
    plan = make_plan(config, after, [0, 1])
    folded = fold_weights(config, weights, plan, TOKENS)
    assert max_difference(config, weights, folded) <= 1e-3
    assert max(folded.errors.values()) < 1e-3
    assert folded.weights["model.layers.1.self_attn.k_proj.weight"].shape[0] == after * config.head_dim


@pytest.mark.parametrize("family", ["llama", "qwen2", "llama-biased"])
def test_low_rank_layers_share_without_loss(family: str) -> None:
    """Layers 0 and 1 add nothing to the stream, so layer 2's keys follow from layer 0's input."""
    config, weights = model(family, num_hidden_layers=4)
    for layer in (0, 1):
        for name in weights:
            if name.startswith(
                (f"model.layers.{layer}.self_attn.o_proj", f"model.layers.{layer}.mlp.down_proj")
            ):
                weights[name].zero_()
    weights["model.layers.2.input_layernorm.weight"] = weights["model.layers.0.input_layernorm.weight"]
    for head in range(config.num_key_value_heads):
        copy_heads(weights, (0, head), (2, head))
    plan = make_plan(config, config.num_key_value_heads, [0, 1, 0, 3])
    folded = fold_weights(config, weights, plan, TOKENS)
    assert folded.errors.keys() == {0, 2}
    assert "model.layers.2.self_attn.k_proj.weight" not in folded.weights
    assert max_difference(config, weights, folded) <= 1e-3


def test_heads_and_layers_fold_together_under_a_window() -> None:
    config, weights = model("llama", num_hidden_layers=4)
    plan = make_plan(config, 1, [0, 0, 2, 2], window=16)
    folded = fold_weights(config, weights, plan, TOKENS)
    assert folded.errors.keys() == {0, 1, 2, 3}
    assert all(0 < error < 1 for error in folded.errors.values())
    logits = dense_logits(Decoder.from_weights(config, folded.plan, folded.weights), HELD_OUT)
    assert logits.isfinite().all()


def test_the_closed_form_beats_mean_pooling() -> None:
    config, weights = model("llama")
    plan = make_plan(config, 1, [0, 1])
    folded = fold_weights(config, weights, plan, TOKENS, HowToFold(FoldSettings(rope_slots="even")))
    pooled = dict(weights)
    for layer in range(2):
        for projection in ("k_proj", "v_proj"):
            heads = read_heads(weights, layer, projection, config.head_dim).mean(0, keepdim=True)
            write_heads(pooled, layer, projection, heads)
    identity = build_plan(Preset(preset="identity"), config.attention_shape)
    target = dense_logits(Decoder.from_weights(config, identity, weights), HELD_OUT)

    def error(candidate: Mapping[str, Tensor]) -> float:
        logits = dense_logits(Decoder.from_weights(config, plan, candidate), HELD_OUT)
        return float((logits - target).square().mean())

    assert error(folded.weights) < error(pooled)


def test_fitted_slots_belong_to_folded_banks_alone() -> None:
    config, weights = model("llama", num_hidden_layers=4)
    layers = make_plan(config, 1, [0, 0, 2, 3]).layers
    whole = LayerPlan(donor=3, num_key_value_heads=config.num_key_value_heads)
    plan = make_plan(config, 1, [0, 0, 2, 3]).model_copy(update={"layers": (*layers[:3], whole)})
    fitted = fold_weights(config, weights, plan, TOKENS, HowToFold(FoldSettings(rope_slots="fitted")))
    slots = [layer.rope_slots for layer in fitted.plan.layers]
    assert slots[0] is not None and slots[0] == slots[1] and slots[2] is not None and slots[3] is None
    assert fold_weights(config, weights, plan, TOKENS).plan == plan


def test_folding_is_deterministic() -> None:
    config, weights = model("llama")
    plan = make_plan(config, 1, [0, 0])
    first, second = (fold_weights(config, weights, plan, TOKENS).weights for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_qk_norm_refuses_merged_heads_and_shared_layers() -> None:
    config, weights = model("qwen3")
    for heads, donors in ((1, [0, 1]), (2, [0, 0])):
        with pytest.raises(PlanError, match="QK-norm"):
            fold_weights(config, weights, make_plan(config, heads, donors), TOKENS)


def test_plans_of_another_shape_are_refused() -> None:
    config, weights = model("llama")
    with pytest.raises(PlanError, match="from this model's shape"):
        fold_weights(config, weights, make_plan(config, 2, [0, 1, 2]), TOKENS)
    with pytest.raises(PlanError, match="use a divisor"):
        fold_weights(config, weights, make_plan(config, 4, [0, 1]), TOKENS)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_after_a_kill_it_goes_on_and_folds_the_same(tmp_path: Path, layer: int) -> None:
    """Killed within a bank, too, whose later readers ask for what was decided before."""
    config, weights = model("qwen2", num_hidden_layers=4)
    plan = make_plan(config, 1, [0, 0, 2, 0])
    how = HowToFold(FoldSettings(rope_slots="fitted"))

    def run(given: Mapping[str, Tensor], folder: Path, end: int | None = None) -> FoldedModel:
        def tell(fraction: float, note: str = "") -> None:
            if note.startswith(f"layer {end} "):
                raise KilledError

        journal = LayerJournal(folder, "key", seconds=0)
        return fold_weights(config, given, plan, TOKENS, how, tell, journal)

    whole = run(weights, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(weights, tmp_path / "killed", end=layer)
    rest = KilledWeights(weights)
    resumed = run(rest, tmp_path / "killed")
    assert not any(name.startswith("model.layers.0.mlp") for name in rest.read), "it went on, not anew"
    assert (resumed.plan, resumed.errors) == (whole.plan, whole.errors)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
