"""FoldPlan: every law is refused by name; the presets' banks, groups and bytes for SmolLM2's shape."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.fold_plan import FoldPlan, describe_errors
from kvfold.plugins.contract.plan_presets import Preset, PresetName, build_plan

SMOLLM2 = AttentionShape(30, 9, 3, 64)
GLOBAL: dict[str, Any] = {"donor": 0, "num_key_value_heads": 3}
LOCAL: dict[str, Any] = GLOBAL | {"donor": 1, "sliding_window": 64, "sink_size": 4, "kv_dtype": "int8"}


def plan_with(layer: int | None = None, /, **changes: Any) -> str:
    """A valid plan of four layers (global, local, its consumer, local), changed in one place."""
    layers = [GLOBAL, LOCAL, LOCAL, LOCAL | {"donor": 3}]
    plan: dict[str, Any] = {"num_attention_heads": 9, "head_dim": 64, "layers": layers}
    if layer is None:
        return json.dumps(plan | changes)
    layers[layer] = layers[layer] | changes
    return json.dumps(plan)


def test_the_unchanged_plan_is_valid() -> None:
    plan = FoldPlan.model_validate_json(plan_with())
    assert [bank.consumers for bank in plan.banks] == [(), (2,), ()]
    assert [plan.is_producer(layer) for layer in range(4)] == [True, True, False, True]
    assert FoldPlan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (plan_with(page_size=8), "page_size is 8; use a power of two of at least 16"),
        (plan_with(page_size=24), "page_size is 24; use a power of two"),
        (plan_with(head_dim=63), "head_dim is 63; RoPE needs an even head_dim"),
        (plan_with(layers=[]), "layers is empty"),
        (plan_with(0, num_key_value_heads=2), "layer 0: 2 KV heads do not divide 9 query heads"),
        (plan_with(0, sink_size=4), "layer 0: sink_size needs a sliding_window"),
        (plan_with(0, head_sink=True), "layer 0: head_sink needs a sliding_window"),
        (plan_with(2, head_sink=True), "layer 2: head_sink .* sink_size is 4; set sink_size: 0"),
        (plan_with(0, donor=1), "layer 0: donor 1 comes later"),
        (plan_with(1, donor=3), "layer 1: donor 3 comes later"),
        (plan_with(3, donor=2), "layer 3: donor 2 owns no KV, it reads layer 1; name that one"),
        (plan_with(2, num_key_value_heads=9), "layer 2: num_key_value_heads is 9, its donor 1 has 3"),
        (plan_with(2, sliding_window=32), "layer 2: sliding_window is 32, its donor 1 has 64"),
        (plan_with(2, sink_size=0), "layer 2: sink_size is 0, its donor 1 has 4"),
        (plan_with(2, kv_dtype="float32"), "layer 2: kv_dtype is float32, its donor 1 has int8"),
        (plan_with(2, rope_slots=[0] * 32), "layer 2: rope_slots is .*, its donor 1 has None"),
        (plan_with(0, rope_slots=[0]), "layer 0: rope_slots is .0,.; head_dim 64 needs 32 frequencies"),
        (plan_with(0, rope_slots=[32] * 32), "layer 0: rope_slots is .*, each of 0..31"),
        (plan_with(2, donor=-1), r"layers\.2\.donor: .*greater than or equal to 0 \(given: -1\)"),
        (plan_with(1, sliding_window=0), r"layers\.1\.sliding_window: .*\(given: 0\)"),
        (plan_with(2, kv_dtype="int4"), r"layers\.2\.kv_dtype: .*\(given: 'int4'\)"),
        (plan_with(2, window=9), r"layers\.2\.window: Extra inputs are not permitted \(given: 9\)"),
        (plan_with(heads=9), r"heads: Extra inputs are not permitted \(given: 9\)"),
        ("{", "Invalid JSON"),
    ],
)
def test_a_broken_law_is_named(text: str, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        FoldPlan.model_validate_json(text)
    problem = describe_errors("the plan", error.value)
    assert re.search(message, problem) and len(problem.splitlines()) == 2, "one problem, one line"


@pytest.mark.parametrize(
    ("name", "kv_heads", "dtype", "global_banks", "local_banks"),
    [
        ("identity", 3, "float32", 30, 0),
        ("horizon", 3, "int8", 5, 25),
        ("mqa", 1, "float32", 30, 0),
        ("character", 1, "int8", 5, 13),
    ],
)
def test_presets(name: PresetName, kv_heads: int, dtype: str, global_banks: int, local_banks: int) -> None:
    plan = build_plan(Preset(preset=name), SMOLLM2)
    expected = [("global", global_banks), ("window1024_sink4", local_banks)]
    assert [(group.name, len(group.banks)) for group in plan.groups] == [row for row in expected if row[1]]
    assert {(bank.num_key_value_heads, bank.kv_dtype) for bank in plan.banks} == {(kv_heads, dtype)}
    readers = [reader for bank in plan.banks for reader in bank.layers]
    assert sorted(readers) == list(range(30)), "every layer reads exactly one bank"
    is_global = [layer.sliding_window is None for layer in plan.layers]
    assert is_global == [local_banks == 0 or index % 6 == 5 for index in range(30)]


def test_character_pairs_neighbouring_local_layers() -> None:
    plan = build_plan(Preset(preset="character"), SMOLLM2)
    shared = {bank.layer: bank.consumers for bank in plan.banks if bank.consumers}
    assert shared[0] == (1,) and shared[2] == (3,) and shared[4] == (6,)
    assert len(shared) == 12


def test_rope_slots_are_set_for_all_readers_of_a_bank_and_cost_nothing() -> None:
    plan = build_plan(Preset(preset="character"), SMOLLM2)
    slots = tuple(min(2 * index, 31) for index in range(32))
    turned = plan.with_rope_slots(4, slots)
    assert [index for index, layer in enumerate(turned.layers) if layer.rope_slots == slots] == [4, 6]
    assert turned.kv_bytes(8192) == plan.kv_bytes(8192)
    assert turned.with_rope_slots(4, None) == plan


def test_head_sinks_belong_to_the_reader_and_cost_no_cache() -> None:
    preset = Preset(preset="character", sink_size=0)
    plan = build_plan(preset, SMOLLM2)
    learned = build_plan(preset.model_copy(update={"head_sink": True}), SMOLLM2)
    assert [layer.head_sink for layer in learned.layers] == [index % 6 != 5 for index in range(30)]
    assert learned.groups == plan.groups and not any(layer.sink_size for layer in preset.layer_kinds)
    mixed = [layer.model_dump() | {"head_sink": index == 1} for index, layer in enumerate(plan.layers)]
    assert FoldPlan.model_validate(plan.model_dump() | {"layers": mixed}).banks == plan.banks
    with pytest.raises(PlanError, match="layer 0: head_sink takes the place of sink tokens, sink_size is 4"):
        build_plan(Preset(preset="horizon", head_sink=True), SMOLLM2)


def test_groups_are_ordered_global_first_then_by_window() -> None:
    horizons: list[tuple[int | None, int]] = [(64, 4), (32, 4), (None, 0), (64, 0)]
    layers = [
        {"donor": index, "num_key_value_heads": 3, "sliding_window": window, "sink_size": sinks}
        for index, (window, sinks) in enumerate(horizons)
    ]
    plan = FoldPlan.model_validate_json(plan_with(layers=layers))
    assert [group.name for group in plan.groups] == [
        "global",
        "window32_sink4",
        "window64_sink0",
        "window64_sink4",
    ]


@pytest.mark.parametrize(
    ("name", "reductions"),
    [
        ("identity", (0.5, 0.5, 0.5)),  # float32 against the bf16 baseline
        ("mqa", (1.5, 1.5, 1.5)),
        ("horizon", (2.0, 3.317, 7.254)),
        ("character", (10.0, 15.248, 26.861)),
    ],
)
def test_bytes_against_a_bf16_cache(name: PresetName, reductions: tuple[float, ...]) -> None:
    plan = build_plan(Preset(preset=name), SMOLLM2)
    lengths = (1024, 2048, 8192)
    actual = [SMOLLM2.kv_bytes(length) / plan.kv_bytes(length) for length in lengths]
    assert actual == pytest.approx(reductions, abs=1e-3)
    if name == "horizon":  # the promise of the preset
        assert actual[0] == 2.0 and actual[2] >= 6


def test_bytes_of_a_token_and_pages_of_a_window() -> None:
    """2 (K and V) * 3 heads * 64 channels * 1 byte; window 1024 of pages of 16, and a page of sinks."""
    plan = build_plan(Preset(preset="horizon"), SMOLLM2)
    whole, local = plan.groups
    assert (whole.bytes_per_token, local.bytes_per_token) == (5 * 384, 25 * 384)
    assert [whole.pages_held(length, 16) for length in (1, 16, 17, 8192)] == [1, 1, 2, 512]
    assert [local.pages_held(length, 16) for length in (1, 1024, 8192)] == [1, 64, 64 + 2 + 1]
    assert plan.kv_bytes(8192) == 512 * 16 * 5 * 384 + 67 * 16 * 25 * 384


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("mqa", (30, 9, 3, 63), "preset mqa is not valid:\n  laws: head_dim is 63"),
        ("identity", (30, 9, 4, 64), "preset identity is not valid:\n  laws: layer 0: 4 KV heads do not"),
        ("horizon", (0, 9, 3, 64), "preset horizon is not valid:\n  laws: layers is empty"),
    ],
)
def test_a_shape_that_cannot_be_folded_is_refused(
    name: PresetName, shape: tuple[int, int, int, int], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        build_plan(Preset(preset=name), AttentionShape(*shape))


def test_the_dials_of_a_preset_take_effect() -> None:
    preset = Preset(preset="horizon", sliding_window=100, sink_size=0, global_every=2, kv_dtype="float16")
    plan = build_plan(preset, AttentionShape(4, 4, 2, 32))
    assert [layer.sliding_window for layer in plan.layers] == [100, None, 100, None]
    assert {(layer.sink_size, layer.kv_dtype) for layer in plan.layers} == {(0, "float16")}
