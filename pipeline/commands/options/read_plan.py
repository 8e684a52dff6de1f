"""RECIPE as a plan and the shape of the model it folds, of a recipe or of a bundle's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.commands.options.recipe_arguments import bundle_path, is_bundle

if TYPE_CHECKING:
    from kvfold.pipeline.workspace.workspace import Workspace
    from kvfold.plugins.contract.attention_shape import AttentionShape
    from kvfold.plugins.contract.fold_plan import FoldPlan


def read_plan(recipe: str) -> tuple[FoldPlan, AttentionShape]:
    """Nothing is exported or built.

    Raises:
        RecipeError: there is no such recipe, or it is not valid.
        BundleError: the bundle is damaged.
        KvfoldError: whatever reading the model's config raises.
    """
    return _read_bundle(Path(recipe)) if is_bundle(recipe) else _read_recipe(recipe)


def _read_bundle(root: Path) -> tuple[FoldPlan, AttentionShape]:
    from kvfold.export.model.model_config import ModelConfig
    from kvfold.runtime.bundle import CONFIG, open_bundle, read_record

    bundle = open_bundle(root)
    config = read_record(bundle.file(CONFIG), ModelConfig)
    return bundle.plan, config.attention_shape


def _read_recipe(name: str) -> tuple[FoldPlan, AttentionShape]:
    """The model's shape is in its bundle where that has been begun and is up to date, else in its config."""
    from kvfold.pipeline.recipe.load_recipe import load_recipe
    from kvfold.pipeline.recipe.plan_section import plan_for
    from kvfold.pipeline.workspace.read_checkpoint import read_config
    from kvfold.pipeline.workspace.workspace import Workspace

    workspace = Workspace(load_recipe(name), bundle_path(name, None))
    config = workspace.config if _has_read_its_model(workspace) else read_config(workspace)
    shape = config.attention_shape
    return plan_for(workspace.recipe.plan, shape), shape


def _has_read_its_model(workspace: Workspace) -> bool:
    from kvfold.pipeline.stages import checkpoint
    from kvfold.pipeline.workspace.run_stages import pending_stages
    from kvfold.plugins.contract.errors import BundleError

    try:
        return not pending_stages(workspace.recipe, workspace.root, (checkpoint.STAGE,))
    except BundleError:  # whoever writes the bundle will say so
        return False
