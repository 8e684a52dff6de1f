"""Stage `fold`: the plan with what folding decided, and the weights: in closed form, or an adapter's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kvfold.pipeline.recipe.plan_section import plan_for
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.pipeline.workspace.workspace import (
    CALIBRATION_TOKENS,
    FOLD_ERRORS,
    FOLD_FOLDER,
    FOLDED_WEIGHTS,
)
from kvfold.runtime.bundle import FOLD_PLAN, hash_file

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.workspace.workspace import Workspace
    from kvfold.plugins.contract.fold_plan import FoldPlan


def settings(recipe: Recipe) -> object:
    """Plan and dials, and the content of the adapter that stands in for folding."""
    adapter = hash_file(recipe.adapter) if recipe.adapter else None
    return [recipe.plan.model_dump(mode="json"), recipe.fold.model_dump(mode="json"), adapter]


def run(workspace: Workspace, job: Job) -> None:
    """Write plan, the weights that changed, and the error of every layer.

    Layers of a fold under way lie in the bundle, outside its manifest, and are good for the stage's own hash
    alone.
    """
    plan, errors = (_merge if workspace.recipe.adapter else _fold)(workspace, job)
    (job.output / FOLD_PLAN).write_text(plan.model_dump_json(indent=2) + "\n")
    (job.output / FOLD_ERRORS).write_text(json.dumps(errors) + "\n")


def _merge(workspace: Workspace, job: Job) -> tuple[FoldPlan, dict[int, float]]:
    """An adapter stands in for folding."""
    from kvfold.export.heal.healed_adapter import AdaptedTensors, load_adapter
    from kvfold.export.weights.layer_journal import write_by_layer

    checkpoint, path = read_checkpoint(workspace), workspace.recipe.adapter
    assert path is not None, "else the model is folded"
    asked = plan_for(workspace.recipe.plan, checkpoint.config.attention_shape)
    adapter = load_adapter(path, workspace.fingerprint, asked)
    changed = AdaptedTensors(checkpoint.config, workspace.original, adapter.plan, adapter.tensors)
    write_by_layer(job.output / FOLDED_WEIGHTS, changed, job.progress)
    return adapter.plan, {}


def _fold(workspace: Workspace, job: Job) -> tuple[FoldPlan, dict[int, float]]:
    from kvfold.export.fold.fold import HowToFold, fold_weights
    from kvfold.export.weights.layer_journal import LayerJournal

    checkpoint, recipe = read_checkpoint(workspace), workspace.recipe
    plan = plan_for(recipe.plan, checkpoint.config.attention_shape)
    tokens = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
    journal = LayerJournal(workspace.root / FOLD_FOLDER, job.key)
    how = HowToFold(recipe.fold)
    folded = fold_weights(checkpoint.config, workspace.original, plan, tokens, how, job.progress, journal)
    journal.share_with(job.output / FOLDED_WEIGHTS)
    return folded.plan, folded.errors


STAGE = Stage(
    name="fold",
    doing="folding heads and layers",
    needs=("checkpoint", "calibration"),
    settings=settings,
    files=(FOLD_PLAN, FOLD_ERRORS, FOLDED_WEIGHTS),
    run=run,
    modules=(__name__,),
    scratch=FOLD_FOLDER,
)
