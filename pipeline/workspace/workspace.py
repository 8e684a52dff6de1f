"""Workspace: what the stages of one run share, each part loaded when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import CONFIG, FOLD_PLAN, QUANTIZATION, WEIGHTS, read_record

if TYPE_CHECKING:
    from torch import Tensor

    from kvfold.export.model.model_config import ModelConfig
    from kvfold.export.quantize.precision import Quantization
    from kvfold.pipeline.recipe.recipe import Recipe

# Files that stages hand to each other; no engine needs them.
SOURCE = "source.json"
CALIBRATION_TOKENS = "work/calibration.safetensors"
HELDOUT_TOKENS = "work/heldout.safetensors"
EVALUATION_TOKENS = "work/evaluation.safetensors"
GRAPH = "work/graph.onnx"  # names the weights that it takes, and holds none
FOLDED_WEIGHTS = "work/folded.safetensors"
FOLD_ERRORS = "work/fold_errors.json"
TRAINING_TOKENS = "work/training.safetensors"
HEALED_WEIGHTS = "work/healed.safetensors"
HEAL_LOSSES = "work/heal_loss.jsonl"
ADAPTER = "adapter.safetensors"
HEAL_FOLDER = "work/heal"  # snapshots of a training that is not finished; no stage's file
WRITER_FOLDER = "work/writer"  # the engine and the rows of texts that the model writes; no stage's file


class Workspace:
    """A recipe, the bundle's folder, and lazy access to what is outside and inside it."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self.recipe = recipe
        self.root = root

    @cached_property
    def config(self) -> ModelConfig:
        """The unfolded model's config, from the bundle."""
        from kvfold.export.model.model_config import ModelConfig

        return read_record(self.root / CONFIG, ModelConfig)

    @cached_property
    def plan(self) -> FoldPlan:
        """The FoldPlan, from the bundle."""
        return read_record(self.root / FOLD_PLAN, FoldPlan)

    @cached_property
    def quantization(self) -> Quantization:
        """The precision of every linear, and its measured error, from the bundle."""
        from kvfold.export.quantize.precision import Quantization

        return read_record(self.root / QUANTIZATION, Quantization)

    @property
    def healed(self) -> Mapping[str, Tensor]:
        """The folded weights, float32, after healing where the recipe trains."""
        return self.tensors(HEALED_WEIGHTS if self.recipe.training else FOLDED_WEIGHTS)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights as an engine holds them, before they are rounded: float32, after calibration."""
        return self.tensors(WEIGHTS)

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of one of the bundle's safetensors files."""
        from safetensors.torch import load_file

        return load_file(self.root / name)
