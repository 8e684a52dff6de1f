"""Plans of checkpoints that have windows and RoPEs of their own: they are where every plan begins."""

from __future__ import annotations

from typing import Any

import pytest

from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, PresetName, build_plan, check_beside

# As gemma3 has them (five local layers to a global one, a RoPE for each kind), gemma2 (every other layer),
# mistral v0.1 (all layers), qwen2 (from `max_window_layers` on), and smollm3 (no windows, two RoPEs).
GEMMA3 = AttentionShape(12, 8, 4, 256, ((512,) * 5 + (None,)) * 2, ((0,) * 5 + (1,)) * 2)
GEMMA2 = AttentionShape(12, 8, 4, 256, (4096, None) * 6)
MISTRAL = AttentionShape(12, 32, 8, 128, (4096,) * 12)
QWEN2 = AttentionShape(12, 14, 2, 64, (None,) * 8 + (4096,) * 4)
SMOLLM3 = AttentionShape(12, 16, 4, 128, (), (0, 0, 0, 1) * 3)
SHAPES = {"gemma3": GEMMA3, "gemma2": GEMMA2, "mistral": MISTRAL, "qwen2": QWEN2, "smollm3": SMOLLM3}
Horizon = tuple[int | None, int]


def horizons(plan: FoldPlan) -> list[Horizon]:
    return [(layer.sliding_window, layer.sink_size) for layer in plan.layers]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("preset", ["identity", "mqa"])
def test_nothing_but_a_windowed_preset_touches_what_a_layer_sees(preset: PresetName, name: str) -> None:
    shape = SHAPES[name]
    plan = build_plan(Preset(preset=preset), shape)
    assert horizons(plan) == [(window, 0) for window in shape.windows]
    if preset == "identity":
        assert plan == FoldPlan.of(shape)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("preset", ["identity", "horizon", "mqa", "character"])
@pytest.mark.parametrize("window", [128, 512, 1024, 8192])
def test_presets_only_shorten_and_never_mix_ropes(preset: PresetName, name: str, window: int) -> None:
    plan = build_plan(Preset(preset=preset, sliding_window=window), SHAPES[name])
    check_beside(plan, SHAPES[name])


@pytest.mark.parametrize(
    ("name", "window", "expected"),
    [
        ("gemma3", 1024, ([(512, 0)] * 5 + [(None, 0)]) * 2),
        ("gemma3", 256, ([(256, 4)] * 5 + [(None, 0)]) * 2),
        ("gemma2", 1024, ([(1024, 4)] * 5 + [(None, 0)]) * 2),
        ("mistral", 1024, ([(1024, 4)] * 5 + [(4096, 0)]) * 2),
        ("qwen2", 1024, [(1024, 4)] * 5 + [(None, 0)] + [(1024, 4), (None, 0)] + [(1024, 4)] * 4),
        ("smollm3", 1024, ([(1024, 4)] * 5 + [(None, 0)]) * 2),
    ],
)
def test_horizon_shortens_what_sees_further_and_keeps_the_rest(
    name: str, window: int, expected: list[Horizon]
) -> None:
    """A layer that keeps its own window has no sinks; of each run one layer keeps the furthest horizon."""
    assert horizons(build_plan(Preset(preset="horizon", sliding_window=window), SHAPES[name])) == expected


def test_character_pairs_neighbours_of_one_rope() -> None:
    plan = build_plan(Preset(preset="character"), SMOLLM3)
    shared = {bank.layer: bank.consumers for bank in plan.banks if bank.consumers}
    assert shared == {0: (1,), 4: (6,), 8: (9,)}  # 3, 7 and 11 turn otherwise, 5 and 11 keep their horizon
    gemma = build_plan(Preset(preset="character"), GEMMA3)
    assert {bank.layer: bank.consumers for bank in gemma.banks if bank.consumers} == {
        0: (1,),
        2: (3,),
        4: (6,),
        7: (8,),
        9: (10,),
    }


@pytest.mark.parametrize(
    ("layer", "changes", "message"),
    [
        (
            0,
            {"sliding_window": None},
            "layer 0: sliding_window is absent .global., the checkpoint's own is 512",
        ),
        (3, {"sliding_window": 513}, "layer 3: sliding_window is 513, .* set sliding_window: 512 or less"),
        (1, {"sink_size": 4}, "layer 1: sink_size is 4 under the checkpoint's own window of 512"),
        (2, {"donor": 0}, None),
        (0, {"sliding_window": 256, "sink_size": 4}, None),
        (5, {"sliding_window": 4096, "sink_size": 4}, None),
    ],
)
def test_a_written_plan_takes_from_what_a_layer_sees_and_adds_nothing(
    layer: int, changes: dict[str, Any], message: str | None
) -> None:
    plan = FoldPlan.of(GEMMA3).with_layers([layer], **changes)
    if message is None:
        check_beside(plan, GEMMA3)
        return
    with pytest.raises(PlanError, match=message):
        check_beside(plan, GEMMA3)


def test_layers_of_two_ropes_never_share_a_bank() -> None:
    with pytest.raises(PlanError, match="layer 3: its donor 2 has another RoPE"):
        check_beside(FoldPlan.of(SMOLLM3).with_layers([3], donor=2), SMOLLM3)


def test_the_baseline_keeps_no_more_of_a_layer_than_its_window() -> None:
    token = 2 * 4 * 256 * 2
    assert GEMMA3.kv_bytes(1) == 12 * token
    assert GEMMA3.kv_bytes(512) == 12 * 512 * token
    assert GEMMA3.kv_bytes(8192) == (10 * 512 + 2 * 8192) * token
    assert MISTRAL.kv_bytes(8192) == 12 * 4096 * 2 * 8 * 128 * 2
