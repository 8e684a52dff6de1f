"""The adapter that ships: the recipe `character` takes it, and another trains on from it."""

from __future__ import annotations

from pathlib import Path

from export.checkpoint import load_checkpoint
from export.heal.adapter import load_adapter, merge
from export.model.decoder import Decoder
from pipeline.load_recipe import load_recipe

ADAPTERS = Path(__file__).parent.parent.parent / "pipeline" / "adapters"
RECIPE = ADAPTERS / "smollm2-135m-character.yaml"
LIMIT = 12_000_000  # bytes


def test_it_is_small_and_makes_a_model_of_the_recipe_s_plan(smollm2_gguf: Path) -> None:
    recipe, going_on = load_recipe("character"), load_recipe(str(RECIPE))
    assert recipe.plan == going_on.plan
    assert recipe.adapter is not None and recipe.adapter == going_on.adapter
    assert recipe.adapter.stat().st_size <= LIMIT
    checkpoint = load_checkpoint(str(smollm2_gguf))
    plan = recipe.build_plan(checkpoint.config.attention_shape)
    adapter = load_adapter(recipe.adapter, checkpoint.fingerprint, plan)
    weights = merge(checkpoint.config, checkpoint.weights, adapter.plan, adapter.tensors)
    Decoder.from_weights(checkpoint.config, adapter.plan, weights)  # raises where a tensor is missing
