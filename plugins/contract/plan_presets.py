"""Presets: named recipes that turn a model's shape into a FoldPlan."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from pydantic import ValidationError as PydanticValidationError

from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.fold_plan import BASELINE_ITEMSIZE, FoldPlan, KvDtype, LayerPlan, describe_errors
from kvfold.plugins.contract.record import Record

PresetName = Literal["identity", "horizon", "mqa", "character"]


@dataclass(frozen=True)
class AttentionShape:
    """The attention of the unfolded model, as its checkpoint declares it."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    def kv_bytes(self, context_length: int) -> int:
        """KV bytes of one sequence in the unfolded model with a bf16 cache: the baseline."""
        per_token = 2 * self.num_key_value_heads * self.head_dim * BASELINE_ITEMSIZE
        return self.num_hidden_layers * per_token * context_length


class UnboundPlan(Record):
    """A plan that knows no model yet: a preset, or layers written by hand."""

    @property
    @abstractmethod
    def layer_kinds(self) -> tuple[LayerPlan, ...]:
        """Every kind of layer that it has."""

    @property
    def has_sinks(self) -> bool:
        """Whether local layers see the first tokens."""
        return any(layer.sink_size for layer in self.layer_kinds)

    @property
    def head_sink_window(self) -> int:
        """Longest window of the layers with head sinks, in tokens; 0 where there are none."""
        return max((layer.sliding_window or 0 for layer in self.layer_kinds if layer.head_sink), default=0)

    @property
    def kv_dtypes(self) -> set[KvDtype]:
        """Types of the caches."""
        return {layer.kv_dtype for layer in self.layer_kinds}


class Preset(UnboundPlan):
    """A preset and its dials.

    Attributes:
        preset: `identity` (nothing folded), `horizon` (windows and sinks), `mqa` (one KV head),
            `character` (MQA, neighbouring local layers share in pairs, windows and sinks).
        sliding_window: tokens a local layer sees, the current one included.
        sink_size: first tokens a local layer always sees.
        head_sink: local layers have a learned logit per query head in place of sink tokens; needs
            sink_size 0.
        global_every: one layer in so many is global, the last of each run.
        kv_dtype: cache storage; None takes the preset's own (float32 for identity and mqa, else int8).
    """

    preset: PresetName
    sliding_window: int = Field(default=1024, ge=1)
    sink_size: int = Field(default=4, ge=0)
    head_sink: bool = False
    global_every: int = Field(default=6, ge=1)
    kv_dtype: KvDtype | None = None

    @property
    def is_windowed(self) -> bool:
        """Whether some layers are local."""
        return self.preset in ("horizon", "character")

    @property
    def layer_kinds(self) -> tuple[LayerPlan, ...]:
        """A global layer, then a local one where there are windows; donors and heads are a model's."""
        dtype: KvDtype = self.kv_dtype or ("int8" if self.is_windowed else "float32")
        everywhere = LayerPlan(donor=0, num_key_value_heads=1, kv_dtype=dtype)
        if not self.is_windowed:
            return (everywhere,)
        horizon = self.model_dump(include={"sliding_window", "sink_size", "head_sink"})
        return everywhere, everywhere.model_copy(update=horizon)


def build_plan(preset: Preset, shape: AttentionShape) -> FoldPlan:
    """The FoldPlan of a preset for a model of this shape.

    Raises:
        PlanError: the shape cannot be folded so (for example KV heads that do not divide).
    """
    everywhere, windowed = preset.layer_kinds[0], preset.layer_kinds[-1]
    heads = 1 if preset.preset in ("mqa", "character") else shape.num_key_value_heads
    is_local = [
        preset.is_windowed and index % preset.global_every != preset.global_every - 1
        for index in range(shape.num_hidden_layers)
    ]
    donors = list(range(shape.num_hidden_layers))
    if preset.preset == "character":
        local_layers = [index for index, local in enumerate(is_local) if local]
        for donor, consumer in zip(local_layers[::2], local_layers[1::2], strict=False):
            donors[consumer] = donor
    try:
        return FoldPlan(
            num_attention_heads=shape.num_attention_heads,
            head_dim=shape.head_dim,
            layers=tuple(
                (windowed if local else everywhere).model_copy(
                    update={"donor": donor, "num_key_value_heads": heads}
                )
                for local, donor in zip(is_local, donors, strict=True)
            ),
        )
    except PydanticValidationError as error:
        raise PlanError(describe_errors(f"preset {preset.preset}", error)) from error
