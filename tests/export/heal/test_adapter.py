"""The adapter: an exact round trip, what a change of low rank comes to, and refusals by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvfold.export.heal.heal import heal
from kvfold.export.heal.healed_adapter import load_adapter, merge, plan_hash, save_adapter
from kvfold.export.model.decoder import Decoder
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.errors import AdapterError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.contract.progress import unheard
from tests.export.heal.tiny_healing import SETTINGS, tiny_healing

HEALING, FOLDED = tiny_healing(SETTINGS.model_copy(update={"layerwise_tokens": 48 * 8, "tokens": 0}))


def changed(plan: FoldPlan, **changes: object) -> FoldPlan:
    """The plan with another value in every layer."""
    return plan.with_layers(range(len(plan.layers)), **changes)


# What a recipe knows before folding has chosen RoPE slots.
ASKED = changed(HEALING.plan, rope_slots=None)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return heal(HEALING, FOLDED, tmp_path_factory.mktemp("heal"), "key", unheard)


def test_the_round_trip_is_exact(tmp_path: Path, adapter: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapter, "base", HEALING.plan)
    read = load_adapter(path, "base", ASKED)
    assert read.plan == HEALING.plan != ASKED
    loaded = read.tensors
    assert loaded.keys() == adapter.keys()
    assert all(torch.equal(loaded[name], adapter[name]) for name in adapter)
    first, second = (merge(HEALING.config, HEALING.base, HEALING.plan, x) for x in (adapter, loaded))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_where_heads_stay_keys_and_values_change_by_low_rank(tmp_path: Path) -> None:
    horizon = Preset(preset="horizon", sliding_window=16, sink_size=2, global_every=4)
    plan = build_plan(horizon, HEALING.config.attention_shape)
    healing, folded = tiny_healing(HEALING.settings, plan=plan)
    trained = heal(healing, folded, tmp_path, "key", unheard)
    save_adapter(tmp_path / "adapter.safetensors", trained, "base", plan)
    read = load_adapter(tmp_path / "adapter.safetensors", "base", plan)
    merged = merge(healing.config, healing.base, plan, read.tensors)
    for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        name = f"model.layers.0.self_attn.{projection}.weight"
        assert name not in trained
        change = trained[f"{name}:left"].float() @ trained[f"{name}:right"].float()
        assert torch.allclose(merged[name], healing.base[name] + change, atol=2e-3)
        assert not torch.equal(merged[name], healing.base[name]), "healing trains it"


def test_head_sinks_are_carried_though_the_base_has_none(tmp_path: Path) -> None:
    healing, folded = tiny_healing(HEALING.settings, head_sink=True)
    trained = heal(healing, folded, tmp_path, "key", unheard)
    save_adapter(tmp_path / "adapter.safetensors", trained, "base", healing.plan)
    read = load_adapter(tmp_path / "adapter.safetensors", "base", healing.plan)
    merged = merge(healing.config, healing.base, healing.plan, read.tensors)
    assert merged.keys() == folded.keys()
    for layer in range(3):
        name = f"model.layers.{layer}.self_attn.sinks"
        assert torch.equal(merged[name], trained[name].float()), name
        assert not torch.equal(merged[name], folded[name]), "healing trains it"
    Decoder.from_weights(healing.config, healing.plan, merged)
    with pytest.raises(AdapterError, match="is for plan"):
        load_adapter(tmp_path / "adapter.safetensors", "base", changed(healing.plan, head_sink=False))


def test_a_plan_without_head_sinks_keeps_the_hash_of_earlier_adapters() -> None:
    plan = build_plan(Preset(preset="character"), AttentionShape(30, 9, 3, 64))
    assert plan_hash(plan) == "98d98b6d1576d7d0e11f009cdac919a73ff768b8690d9ebd53001dfac7dd31de"


def test_how_caches_are_stored_is_no_other_plan(tmp_path: Path, adapter: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapter, "base", HEALING.plan)
    load_adapter(path, "base", changed(HEALING.plan, kv_dtype="float32"))


def test_foreign_and_damaged_adapters_are_refused(tmp_path: Path, adapter: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapter, "base", HEALING.plan)
    with pytest.raises(AdapterError, match="is for base base, this one is other"):
        load_adapter(path, "other", HEALING.plan)
    with pytest.raises(AdapterError, match="is for plan"):
        load_adapter(path, "base", changed(HEALING.plan, sliding_window=8, sink_size=0))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="cannot be read"):
        load_adapter(path, "base", HEALING.plan)
    with pytest.raises(AdapterError, match="cannot be read"):
        load_adapter(tmp_path / "none", "base", HEALING.plan)
