"""The checkpoint that a workspace's recipe names, read once."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from kvfold.pipeline.workspace.fetch import MODEL_CACHE, fetch_demo_model

if TYPE_CHECKING:
    from kvfold.export.checkpoint.checkpoint import Checkpoint
    from kvfold.export.model.model_config import ModelConfig
    from kvfold.pipeline.recipe.recipe import Recipe


class HasRecipe(Protocol):
    """A workspace, as far as is asked of it here."""

    @property
    def recipe(self) -> Recipe:
        """It names the checkpoint."""
        ...


@lru_cache(maxsize=1)  # the stages of one run ask for the same; its weights stay in their file
def read_checkpoint(workspace: HasRecipe) -> Checkpoint:
    """The unfolded model; fetches the demo's where it is not there yet.

    Raises:
        CheckpointError, UnsupportedModelError: it cannot be read, or is of no family that kvfold knows.
        FetchError: the demo's model cannot be had.
    """
    from kvfold.export.checkpoint.load_checkpoint import load_checkpoint

    return load_checkpoint(_source(workspace))


def read_config(workspace: HasRecipe) -> ModelConfig:
    """The unfolded model's config alone; errors as `read_checkpoint`'s, as far as that says them."""
    from kvfold.export.checkpoint.read_config import read_config

    return read_config(_source(workspace))


def _source(workspace: HasRecipe) -> str:
    model = workspace.recipe.model
    return str(fetch_demo_model(MODEL_CACHE)) if model.is_demo else model.source
