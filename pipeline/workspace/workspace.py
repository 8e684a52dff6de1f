"""Workspace: what the stages of one run share, each part loaded when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.recipe.recipe_sections import SHAREGPT, SHAREGPT_HELD_OUT
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.bundle import CONFIG, FOLD_PLAN, QUANTIZATION

if TYPE_CHECKING:
    from torch import Tensor

    from kvfold.export.checkpoint import Checkpoint
    from kvfold.export.model.model_config import ModelConfig
    from kvfold.export.quantize.precision import Quantization
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.recipe.recipe_sections import TextSection

# Files that stages hand to each other; no engine needs them.
SOURCE = "source.json"
CALIBRATION_TOKENS = "work/calibration.safetensors"
HELDOUT_TOKENS = "work/heldout.safetensors"
EVALUATION_TOKENS = "work/evaluation.safetensors"
FOLDED_WEIGHTS = "work/folded.safetensors"
FOLD_ERRORS = "work/fold_errors.json"
TRAINING_TOKENS = "work/training.safetensors"
HEALED_WEIGHTS = "work/healed.safetensors"
HEAL_LOSSES = "work/heal_loss.jsonl"
ADAPTER = "adapter.safetensors"
HEAL_FOLDER = "work/heal"  # snapshots of a training that is not finished; no stage's file


class Workspace:
    """A recipe, the bundle's folder, and lazy access to what is outside and inside it."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self.recipe = recipe
        self.root = root

    @cached_property
    def config(self) -> ModelConfig:
        """The unfolded model's config, from the bundle."""
        from kvfold.export.model.model_config import ModelConfig

        return ModelConfig.model_validate_json((self.root / CONFIG).read_bytes())

    @cached_property
    def plan(self) -> FoldPlan:
        """The FoldPlan, from the bundle."""
        return FoldPlan.parse((self.root / FOLD_PLAN).read_bytes())

    @cached_property
    def quantization(self) -> Quantization:
        """The precision of every linear, and its measured error, from the bundle."""
        from kvfold.export.quantize.precision import Quantization

        return Quantization.model_validate_json((self.root / QUANTIZATION).read_bytes())

    @property
    def healed(self) -> Mapping[str, Tensor]:
        """The folded weights, float32, after healing where the recipe trains."""
        return self.tensors(HEALED_WEIGHTS if self.recipe.training else FOLDED_WEIGHTS)

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of one of the bundle's safetensors files."""
        from safetensors.torch import load_file

        return load_file(self.root / name)


def read_text(section: TextSection, checkpoint: Checkpoint) -> Tensor:
    """The sequences of a section, int64 [N, sequence_length]; fetches conversations not there yet.

    Raises:
        CalibrationError: the text is missing, unreadable or too short.
        FetchError: the conversations cannot be had.
    """
    from kvfold.export.calibration import calibration_tokens

    source = section.source
    if source in (SHAREGPT, SHAREGPT_HELD_OUT):
        from kvfold.pipeline.workspace.fetch import MODEL_CACHE, fetch_conversations

        source = str(fetch_conversations(MODEL_CACHE, held_out=source == SHAREGPT_HELD_OUT))
    return calibration_tokens(source, checkpoint, section.tokens, section.sequence_length, section.seed)
