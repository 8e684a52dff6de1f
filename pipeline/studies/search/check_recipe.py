"""What a searched plan demands of a recipe, and what the recipe's target demands of the plan."""

from __future__ import annotations

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.plugins.contract.errors import RecipeError
from kvfold.plugins.contract.fold_plan import KvDtype


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


def wide_dtype(recipe: Recipe) -> KvDtype:
    """The float cache of the recipe's target."""
    if recipe.target in ("tensorrt", "tensorrt-rtx"):
        return recipe.tensorrt.activation_dtype
    return next(dtype for dtype in TARGETS[recipe.target].kv_dtypes if dtype != "int8")
