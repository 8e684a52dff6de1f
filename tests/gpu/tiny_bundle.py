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


def float_linears(preset: str, sinks: str, kv_dtype: KvDtype) -> GpuRecipe:
    """The tiny recipe with nothing but its caches in less than the activations' type, for the target cuda.

    A folded model in float32 is the peer of float caches; of int8 ones, the engine on the CPU.
    """
    plan = f"preset: {preset}, sliding_window: 32, {SINKS[sinks]}, kv_dtype: {kv_dtype}, global_every: 2"
    recipe = RECIPE.replace(PLAN, f"plan: {{{plan}}}") + "quantize: {linears: none}\n"
    return GpuRecipe(recipe, ("cpu", "cuda") if kv_dtype == "int8" else ("cuda",))


PLAN = "plan: {preset: character, sliding_window: 32, sink_size: 4, global_every: 2}"
# What a windowed layer sees beside its window.
SINKS = {
    "sinks": "sink_size: 4",
    "head_sink": "sink_size: 0, head_sink: true",
    "nothing": "sink_size: 0",
}
KV_DTYPES: tuple[KvDtype, ...] = ("int8", "float16", "bfloat16")
# Every recipe that a GPU test may build, by name; without a GPU the suite shows that each fits its targets.
RECIPES = {
    "tiny": GpuRecipe(RECIPE, ("cpu", "tensorrt", "tensorrt-rtx")),
    **{
        f"{preset}-{sinks}-{kv_dtype}": float_linears(preset, sinks, kv_dtype)
        for preset in ("horizon", "character")
        for sinks in SINKS
        for kv_dtype in KV_DTYPES
    },
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
        return self.workspace.plan

    @cached_property
    def texts(self) -> np.ndarray:
        """Four held-out texts, int64 [4, 96]."""
        self._run(self.workspace.recipe, "heldout")
        tokens: np.ndarray = self.workspace.tensors(HELDOUT_TOKENS)["tokens"].numpy()
        return tokens.reshape(4, 96)

    @cached_property
    def folded_logits(self) -> np.ndarray:
        """Of the texts by the folded model in PyTorch, float32 [4, 96, vocab_size]."""
        from kvfold.export.model.decoder import Decoder

        workspace = self.workspace
        decoder = Decoder.from_weights(workspace.config, workspace.plan, workspace.weights)
        subject = TorchSubject(FOLDED, decoder)
        return np.stack([subject.compute_logits(text) for text in self.texts])

    @cached_property
    def workspace(self) -> Workspace:
        """Of the bundle, for the first target."""
        return Workspace(self.load(self._recipe.targets[0]), self.root)

    def _run(self, recipe: Recipe, last: str) -> None:
        run_stages(recipe, self.root, STAGES, QuietDisplay(), last)
