"""Bundles of tiny recipes with engines for several targets, and their logits by the folded PyTorch model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kvfold.pipeline.quality.subject_names import FOLDED
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.stage import target_stage
from kvfold.pipeline.workspace.workspace import HELDOUT_TOKENS, Workspace
from kvfold.plugins.contract.fold_plan import FoldPlan, KvDtype
from tests.pipeline.fake_stages import QuietDisplay
from tests.pipeline.quality.torch_subject import TorchSubject
from tests.pipeline.tiny_recipe import RECIPE, write_tiny_recipe


@dataclass(frozen=True)
class GpuRecipe:
    """A recipe of GPU tests.

    Attributes:
        text: of the file.
        targets: what it is built for. Its texts and its folded model are those of the first.
    """

    text: str
    targets: tuple[str, ...]


def without_sinks(kv_dtype: KvDtype, head_sink: bool, targets: tuple[str, ...]) -> GpuRecipe:
    """The tiny recipe as the stock op can compute it: no sink tokens, with learned sinks or none."""
    dials = f"sink_size: 0, head_sink: {str(head_sink).lower()}, kv_dtype: {kv_dtype}"
    return GpuRecipe(RECIPE.replace("sink_size: 4", dials), targets)


# Every recipe that a GPU test may build, by name; without a GPU the suite shows that each fits its targets.
RECIPES = {
    "tiny": GpuRecipe(RECIPE, ("cpu", "tensorrt", "tensorrt-rtx")),
    "float16": without_sinks("float16", False, ("cuda",)),
    "float16-head-sink": without_sinks("float16", True, ("cuda",)),
    "int8": without_sinks("int8", False, ("cpu", "cuda")),
    "int8-head-sink": without_sinks("int8", True, ("cpu", "cuda")),
}


class TinyBundle:
    """Built piece by piece when it is asked for, so that without a GPU nothing is.

    Args:
        folder: for checkpoint, recipe and bundle.
        name: of one of RECIPES.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.root = folder / "bundle"
        self._folder = folder
        self._recipe = RECIPES[name]

    @cached_property
    def recipe(self) -> Path:
        """Path of the recipe."""
        return write_tiny_recipe(self._folder, self._recipe.text)

    def load(self, target: str, architectures: tuple[int, ...] = ()) -> Recipe:
        """The recipe for one of its targets."""
        assert target in self._recipe.targets, (
            f"name {target} in RECIPES, so that it is checked without a GPU"
        )
        return load_recipe(str(self.recipe), target, architectures)

    def build(self, target: str, architectures: tuple[int, ...] = ()) -> Path:
        """The engine's folder; a second time nothing is built."""
        self._run(self.load(target, architectures), target_stage("build", target))
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
        decoder = Decoder.from_weights(workspace.config, workspace.plan, workspace.weights)
        subject = TorchSubject(FOLDED, decoder)
        return np.stack([subject.compute_logits(text) for text in self.texts])

    @cached_property
    def _workspace(self) -> Workspace:
        return Workspace(self.load(self._recipe.targets[0]), self.root)

    def _run(self, recipe: Recipe, last: str) -> None:
        run_stages(recipe, self.root, STAGES, QuietDisplay(), last)
