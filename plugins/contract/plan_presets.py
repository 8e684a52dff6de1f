"""Presets: named recipes that turn a model's shape into a FoldPlan."""

from __future__ import annotations

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


class Preset(Record):
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
    def has_sinks(self) -> bool:
        """Whether local layers see the first tokens."""
        return self.is_windowed and self.sink_size > 0

    @property
    def head_sink_window(self) -> int:
        """Window of the layers with head sinks, in tokens; 0 where there are none."""
        return self.sliding_window if self.is_windowed and self.head_sink else 0

    @property
    def kv_dtypes(self) -> set[KvDtype]:
        """Types of the caches."""
        return {self.kv_dtype or ("int8" if self.is_windowed else "float32")}


def build_plan(preset: Preset, shape: AttentionShape) -> FoldPlan:
    """The FoldPlan of a preset for a model of this shape.

    Raises:
        PlanError: the shape cannot be folded so (for example KV heads that do not divide).
    """
    (kv_dtype,) = preset.kv_dtypes
    heads = 1 if preset.preset in ("mqa", "character") else shape.num_key_value_heads
    local = [
        preset.is_windowed and index % preset.global_every != preset.global_every - 1
        for index in range(shape.num_hidden_layers)
    ]
    donors = list(range(shape.num_hidden_layers))
    if preset.preset == "character":
        local_layers = [index for index, is_local in enumerate(local) if is_local]
        for donor, consumer in zip(local_layers[::2], local_layers[1::2], strict=False):
            donors[consumer] = donor
    try:
        return FoldPlan(
            num_attention_heads=shape.num_attention_heads,
            head_dim=shape.head_dim,
            layers=tuple(
                LayerPlan(
                    donor=donors[index],
                    num_key_value_heads=heads,
                    sliding_window=preset.sliding_window if local[index] else None,
                    sink_size=preset.sink_size if local[index] else 0,
                    head_sink=preset.head_sink and local[index],
                    kv_dtype=kv_dtype,
                )
                for index in range(shape.num_hidden_layers)
            ),
        )
    except PydanticValidationError as error:
        raise PlanError(describe_errors(f"preset {preset.preset}", error)) from error
