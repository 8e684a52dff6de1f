"""A recipe's model under its plan, folded by one of the methods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kvfold.pipeline.recipe.plan_section import plan_for
from kvfold.pipeline.workspace.workspace import CALIBRATION_TOKENS, Workspace

if TYPE_CHECKING:
    from kvfold.export.layerwise.layerwise_model import LayerwiseModel
    from kvfold.plugins.contract.progress import Progress


@contextmanager
def fold_by(workspace: Workspace, method: str, ridge: float, progress: Progress) -> Iterator[LayerwiseModel]:
    """Fold on the bundle's calibration text, as the stage `fold` does; its layers are files meanwhile.

    Args:
        workspace: its stage `calibration` up to date.
        method: a name of `export.fold.baselines.METHODS`.
        ridge: in place of the recipe's own.
        progress: told of the fold's fraction done.
    """
    from kvfold.export.fold.baselines import METHODS
    from kvfold.export.fold.fold import HowToFold, fold_weights
    from kvfold.export.layerwise.layerwise_model import LayerwiseModel
    from kvfold.export.weights.layer_journal import LayerJournal

    config, recipe = workspace.config, workspace.recipe
    plan = plan_for(recipe.plan, config.attention_shape)
    tokens = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
    how = HowToFold(recipe.fold.model_copy(update={"ridge": ridge}), METHODS[method])
    with TemporaryDirectory(prefix="kvfold-") as folder:
        journal = LayerJournal(Path(folder) / "fold", method, seconds=inf)  # nobody goes on from it
        folded = fold_weights(config, workspace.original, plan, tokens, how, progress, journal)
        yield LayerwiseModel(config, folded.plan, folded.weights)
