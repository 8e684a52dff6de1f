"""Workspace: what the stages of one run share, each part loaded when first asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.plugins.contract.errors import CheckpointError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import CONFIG, FOLD_PLAN, QUANTIZATION, read_record

if TYPE_CHECKING:
    from torch import Tensor

    from kvfold.export.model.model_config import ModelConfig
    from kvfold.export.quantize.int4.stored_blocks import StoredBlocks
    from kvfold.export.quantize.precision import Quantization
    from kvfold.pipeline.recipe.recipe import Recipe

# Files that stages hand to each other; no engine needs them.
SOURCE = "source.json"
CALIBRATION_TOKENS = "work/calibration.safetensors"
HELDOUT_TOKENS = "work/heldout.safetensors"
EVALUATION_TOKENS = "work/evaluation.safetensors"
GRAPH = "work/graph.onnx"  # names the weights that it takes, and holds none
FOLDED_WEIGHTS = "work/folded/"  # what folding changed, a file a layer
FOLD_ERRORS = "work/fold_errors.json"
FOLD_FOLDER = "work/fold"  # layers of a fold that is not finished; no stage's file
TRAINING_TOKENS = "work/training.safetensors"
HEALED_WEIGHTS = "work/healed/"  # what folding and healing changed
HEAL_LOSSES = "work/heal_loss.jsonl"
ADAPTER = "adapter.safetensors"
INT4_BLOCKS = "work/int4/"  # of linears in 4 bits whose weights are in no blocks of their own, a file a layer
SMOOTHING = "work/smoothing.safetensors"  # what rows and columns are multiplied with
QUANTIZE_FOLDER = "work/quantize"  # as FOLD_FOLDER
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
    def fingerprint(self) -> str:
        """Of the checkpoint that the bundle is made of, as the stage `checkpoint` found it."""
        found: str = json.loads((self.root / SOURCE).read_text())["fingerprint"]
        return found

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
    def folded(self) -> Mapping[str, Tensor]:
        """The folded weights, float32: the checkpoint's, but for what folding changed. Read on access."""
        return self._changed(FOLDED_WEIGHTS)

    @property
    def healed(self) -> Mapping[str, Tensor]:
        """The folded weights, after healing where the recipe trains."""
        return self._changed(HEALED_WEIGHTS if self.recipe.training else FOLDED_WEIGHTS)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights as an engine holds them, before they are rounded: float32, smoothed on access."""
        from kvfold.export.weights.changed_weights import ScaledWeights

        return ScaledWeights(self.healed, self.tensors(SMOOTHING))

    @property
    def int4_blocks(self) -> StoredBlocks:
        """Blocks of the linears that run in 4 bits."""
        from kvfold.export.quantize.int4.stored_blocks import StoredBlocks
        from kvfold.export.weights.tensor_file import TensorFolder

        return StoredBlocks(self.quantization, TensorFolder(self.root / INT4_BLOCKS))

    def _changed(self, folder: str) -> Mapping[str, Tensor]:
        from kvfold.export.weights.changed_weights import ChangedWeights, dropped_names
        from kvfold.export.weights.tensor_file import TensorFolder

        changed = TensorFolder(self.root / folder)
        return ChangedWeights(self.original, changed, dropped_names(self.plan))

    @cached_property
    def original(self) -> Mapping[str, Tensor]:
        """The checkpoint's weights.

        Raises:
            CheckpointError: the checkpoint is gone, or another than the bundle was made of.
        """
        checkpoint = read_checkpoint(self)
        # A local checkpoint's sizes and times are of the stage `checkpoint`; what a hub gives may be another.
        local = self.recipe.model.is_demo or Path(self.recipe.model.source).exists()
        if not local and checkpoint.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"{self.root} reads its weights from {checkpoint.source}, of which the hub now gives another "
                "revision; run `kvfold build` with another --output"
            )
        return checkpoint.weights

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of one of the bundle's safetensors files."""
        from safetensors.torch import load_file

        return load_file(self.root / name)
