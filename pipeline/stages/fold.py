"""Stage `fold`: the plan with what folding decided, and the weights: in closed form, or an adapter's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kvfold.pipeline.recipe.plan_section import plan_for
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.pipeline.workspace.workspace import CALIBRATION_TOKENS, FOLD_ERRORS, FOLDED_WEIGHTS
from kvfold.runtime.bundle import FOLD_PLAN, hash_file

if TYPE_CHECKING:
    from kvfold.export.fold.fold import FoldedModel
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.workspace.workspace import Workspace
    from kvfold.plugins.contract.progress import Progress


def settings(recipe: Recipe) -> object:
    """Plan and dials, and the content of the adapter that stands in for folding."""
    adapter = hash_file(recipe.adapter) if recipe.adapter else None
    return [recipe.plan.model_dump(mode="json"), recipe.fold.model_dump(mode="json"), adapter]


def run(workspace: Workspace, job: Job) -> None:
    """Write plan, weights and the error of every layer."""
    from safetensors.torch import save_file

    folded = _fold(workspace, job.progress)
    (job.output / FOLD_PLAN).write_text(folded.plan.model_dump_json(indent=2) + "\n")
    (job.output / FOLD_ERRORS).parent.mkdir()
    (job.output / FOLD_ERRORS).write_text(json.dumps(folded.errors) + "\n")
    weights = {name: weight.contiguous() for name, weight in folded.weights.items()}
    save_file(weights, job.output / FOLDED_WEIGHTS)


def _fold(workspace: Workspace, progress: Progress) -> FoldedModel:
    from kvfold.export.fold.fold import FoldedModel, HowToFold, fold_weights
    from kvfold.export.heal.healed_adapter import load_adapter, merge

    checkpoint, recipe = read_checkpoint(workspace), workspace.recipe
    plan = plan_for(recipe.plan, checkpoint.config.attention_shape)
    if recipe.adapter:
        adapter = load_adapter(recipe.adapter, checkpoint.fingerprint, plan)
        merged = merge(checkpoint.config, checkpoint.weights, adapter.plan, adapter.tensors)
        return FoldedModel(adapter.plan, merged, errors={})
    tokens = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
    how = HowToFold(recipe.fold)
    return fold_weights(checkpoint.config, checkpoint.weights, plan, tokens, how, progress)


STAGE = Stage(
    name="fold",
    doing="folding heads and layers",
    needs=("checkpoint", "calibration"),
    settings=settings,
    files=(FOLD_PLAN, FOLD_ERRORS, FOLDED_WEIGHTS),
    run=run,
    modules=(__name__,),
)
