"""The adapters that ship: a recipe takes each, and another beside it trains it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.heal.healed_adapter import load_adapter, merge
from kvfold.export.model.decoder import Decoder
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.plan_section import plan_for
from tests.root import ROOT

ADAPTERS = ROOT / "pipeline/recipe/adapters"


@pytest.mark.parametrize(("name", "limit"), [("character", 12_000_000), ("compact", 12_000_000)])
def test_it_is_small_and_makes_a_model_of_the_recipe_s_plan(
    name: str, limit: int, smollm2_gguf: Path
) -> None:
    recipe, trained = load_recipe(name), load_recipe(str(ADAPTERS / f"smollm2-135m-{name}.yaml"))
    assert recipe.plan == trained.plan
    assert recipe.adapter is not None and recipe.adapter.stat().st_size <= limit
    assert trained.adapter in (None, recipe.adapter)  # it trains from nothing, or goes on
    checkpoint = load_checkpoint(str(smollm2_gguf))
    plan = plan_for(recipe.plan, checkpoint.config.attention_shape)
    adapter = load_adapter(recipe.adapter, checkpoint.fingerprint, plan)
    weights = merge(checkpoint.config, checkpoint.weights, adapter.plan, adapter.tensors)
    Decoder.from_weights(checkpoint.config, adapter.plan, weights)  # raises where a tensor is missing
