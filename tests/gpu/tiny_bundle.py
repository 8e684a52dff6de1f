"""The tiny recipe's bundle with engines for several targets, and its logits by the folded PyTorch model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from kvfold.pipeline.quality.subject_names import FOLDED
from kvfold.pipeline.quality.subjects import TorchSubject
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.stage import target_stage
from kvfold.pipeline.workspace.workspace import HELDOUT_TOKENS, Workspace
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import WEIGHTS
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.tiny_recipe import RECIPE, write_tiny_recipe


class TinyBundle:
    """Built piece by piece when it is asked for, so that without a GPU nothing is.

    Args:
        folder: for checkpoint, recipe and bundle.
        recipe: text of the recipe.
    """

    def __init__(self, folder: Path, recipe: str = RECIPE) -> None:
        self.root = folder / "bundle"
        self._folder = folder
        self._recipe = recipe

    @cached_property
    def recipe(self) -> Path:
        """Path of the recipe."""
        return write_tiny_recipe(self._folder, self._recipe)

    def build(self, target: str, architectures: tuple[int, ...] = ()) -> Path:
        """The engine's folder; a second time nothing is built."""
        self._run(load_recipe(str(self.recipe), target, architectures), target_stage("build", target))
        return self.root / "engine" / target

    @property
    def plan(self) -> FoldPlan:
        """Of the bundle, once something of it was built."""
        return self._workspace.plan

    @cached_property
    def texts(self) -> np.ndarray:
        """Four held-out texts, int64 [4, 96]."""
        self._run(self._workspace.recipe, "heldout")
        tokens: np.ndarray = self._workspace.tensors(HELDOUT_TOKENS)["tokens"].numpy()
        return tokens.reshape(4, 96)

    @cached_property
    def folded_logits(self) -> np.ndarray:
        """Of the texts by the folded model in PyTorch, float32 [4, 96, vocab_size]."""
        from kvfold.export.model.decoder import Decoder

        workspace = self._workspace
        decoder = Decoder.from_weights(workspace.config, workspace.plan, workspace.tensors(WEIGHTS))
        subject = TorchSubject(FOLDED, decoder)
        return np.stack([subject.compute_logits(text) for text in self.texts])

    @cached_property
    def _workspace(self) -> Workspace:
        return Workspace(load_recipe(str(self.recipe)), self.root)

    def _run(self, recipe: Recipe, last: str) -> None:
        run_stages(recipe, self.root, STAGES, QuietDisplay(), last)
