"""Shapes of the optimisation profiles, and how far a build is."""

from __future__ import annotations

import pytest

from kvfold.pipeline.build.tensorrt.build_phases import Phases
from kvfold.pipeline.build.tensorrt.limits import (
    MAX_POOL_ELEMENTS,
    decode_limits,
    max_pages,
    prefill_limits,
    profile_shapes,
)
from kvfold.pipeline.recipe.recipe import TensorRTSection
from kvfold.plugins.contract import step
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan

SECTION = TensorRTSection(architectures=(80,), max_num_batched_tokens=1024, max_num_seqs=16)


@pytest.fixture
def plan() -> FoldPlan:
    shape = AttentionShape(num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4, head_dim=64)
    return build_plan(Preset(preset="character"), shape)


def test_profiles_cover_every_input_of_the_graph(plan: FoldPlan) -> None:
    for limits in (decode_limits(SECTION, plan, 8192), prefill_limits(SECTION, plan, 8192, 512)):
        shapes = profile_shapes(plan, limits)
        assert list(shapes) == step.input_names(plan)
        for name, (smallest, typical, largest) in shapes.items():
            sizes = zip(smallest, typical, largest, strict=True)
            assert all(a <= b <= c for a, b, c in sizes), name


def test_decode_has_as_many_tokens_as_sequences(plan: FoldPlan) -> None:
    shapes = profile_shapes(plan, decode_limits(SECTION, plan, 8192))
    assert shapes[step.INPUT_IDS] == shapes[step.PAST_SEQLENS] == ((1,), (8,), (16,))
    assert shapes[step.CUMULATIVE_SEQUENCE_LENGTH] == ((2,), (9,), (17,))
    assert shapes[step.block_table("global")] == ((1, 1), (8, 128), (16, 512))


def test_prefill_goes_to_the_token_budget(plan: FoldPlan) -> None:
    limits = prefill_limits(SECTION, plan, 8192, 512)
    shapes = profile_shapes(plan, limits)
    assert shapes[step.INPUT_IDS] == shapes[step.slot_mapping("global")] == ((1,), (512,), (1024,))
    assert shapes[step.LOGITS_INDICES] == ((1,), (8,), (512,))


def test_a_short_context_bounds_the_typical_step(plan: FoldPlan) -> None:
    section = TensorRTSection(architectures=(80,), max_num_batched_tokens=4, max_num_seqs=2)
    shapes = profile_shapes(plan, prefill_limits(section, plan, 40, 4))
    assert shapes[step.INPUT_IDS] == ((1,), (4,), (4,))
    assert shapes[step.block_table("global")] == ((1, 1), (2, 3), (2, 3))


def test_no_pool_outgrows_a_tensor(plan: FoldPlan) -> None:
    pages = max_pages(plan)
    assert pages.keys() == {group.name for group in plan.groups}
    elements = pages["global"] * plan.page_size * plan.head_dim
    assert MAX_POOL_ELEMENTS - plan.page_size * plan.head_dim < elements <= MAX_POOL_ELEMENTS


def test_fractions_of_nested_phases() -> None:
    phases = Phases()
    phases.start("build", 4)
    phases.complete("build", 0)
    phases.start("tactics", 2)
    assert phases.fraction == 0.25
    phases.complete("tactics", 0)
    assert phases.fraction == 0.375
    phases.finish("tactics")
    assert phases.fraction == 0.25
    phases.complete("build", 3)
    assert phases.fraction == 1.0
