"""Which recipes can take a searched plan."""

from __future__ import annotations

from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.plugins.contract.errors import RecipeError


def check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError where the recipe cannot take another plan."""
    if recipe.adapter:
        raise RecipeError(
            f"recipe {recipe.name} takes weights from an adapter, {recipe.adapter.name}, which belongs to "
            "its present plan; remove heal.adapter or heal.start"
        )
