"""A ladder: recipes for one model, each with a bundle of its own."""

from __future__ import annotations

from collections.abc import Sequence

from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.recipe_files import BUNDLES
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.plugins.contract.errors import RecipeError

# Shipped recipes from the original's quality to the smallest cache.
SHIPPED_LADDER = ("identity", "horizon", "balanced", "compact", "mqa", "character")


def load_ladder(names: Sequence[str]) -> list[Workspace]:
    """Recipes, given by path or shipped name, and their bundles `bundles/<recipe>`.

    Raises:
        RecipeError: a recipe is not valid, two have one name, or they are for different models.
        CheckpointError, UnsupportedModelError: a model that is to be compared cannot be read.
    """
    recipes = [load_recipe(name) for name in names]
    rungs = [Workspace(recipe, BUNDLES / recipe.name) for recipe in recipes]
    by_name: dict[str, str] = {}
    for given, recipe in zip(names, recipes, strict=True):
        if recipe.name in by_name:
            raise RecipeError(
                f"two rungs are called {recipe.name} ({by_name[recipe.name]} and {given}) and would share "
                f"the bundle {BUNDLES / recipe.name}; name each once, or rename one of the files"
            )
        by_name[recipe.name] = given
    _require_one_model(rungs)
    return rungs


def _require_one_model(rungs: Sequence[Workspace]) -> None:
    """One checkpoint may be named in several ways: where sources differ, contents are compared."""
    first = rungs[0]
    for rung in rungs[1:]:
        one, other = first.recipe, rung.recipe
        if other.model.source == one.model.source:
            continue
        if read_checkpoint(rung).fingerprint != read_checkpoint(first).fingerprint:
            raise RecipeError(
                f"the rungs fold different models: model.source is {one.model.source} in {one.name}, "
                f"{other.model.source} in {other.name}; a ladder is for one model, make one for each"
            )
