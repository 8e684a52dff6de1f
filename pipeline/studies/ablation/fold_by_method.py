"""A recipe's model under its plan, folded by one of the methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.recipe.plan_section import plan_for
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.workspace import CALIBRATION_TOKENS, Workspace

if TYPE_CHECKING:
    from kvfold.export.model.decoder import Decoder
    from kvfold.plugins.contract.progress import Progress


def fold_by(workspace: Workspace, method: str, ridge: float, progress: Progress) -> Decoder:
    """Fold on the bundle's calibration text, as the stage `fold` does.

    Args:
        workspace: its stage `calibration` up to date.
        method: a name of `export.fold.baselines.METHODS`.
        ridge: in place of the recipe's own.
        progress: told of the fold's fraction done.
    """
    from kvfold.export.fold.baselines import METHODS
    from kvfold.export.fold.fold import HowToFold, fold_weights
    from kvfold.export.model.decoder import Decoder

    checkpoint, recipe = read_checkpoint(workspace), workspace.recipe
    plan = plan_for(recipe.plan, checkpoint.config.attention_shape)
    tokens = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
    how = HowToFold(recipe.fold.model_copy(update={"ridge": ridge}), METHODS[method])
    folded = fold_weights(checkpoint.config, checkpoint.weights, plan, tokens, how, progress)
    return Decoder.from_weights(checkpoint.config, folded.plan, folded.weights)
