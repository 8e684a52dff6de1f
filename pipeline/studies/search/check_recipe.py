"""Which recipes can take a searched plan."""

from __future__ import annotations

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.plugins.contract.errors import RecipeError


def check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError where the recipe cannot take another plan, or its target not the searched one."""
    if recipe.adapter:
        raise RecipeError(
            f"recipe {recipe.name} takes weights from an adapter, {recipe.adapter.name}, which belongs to "
            "its present plan; remove heal.adapter or heal.start"
        )
    if recipe.search.sink_size and not TARGETS[recipe.target].keeps_sinks:
        raise RecipeError(
            f"target {recipe.target} cannot keep a sequence's first tokens in sight under a window; set "
            "search.sink_size: 0, or choose another target"
        )
