"""Presets: named recipes that turn a model's shape into a FoldPlan.

Every plan begins with the windows that the checkpoint has (`FoldPlan.of`) and only shortens them. A layer
that keeps its own window gets no sinks; a shortened one gets the plan's, visible beyond its own window too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from math import inf
from typing import Literal

from pydantic import Field
from pydantic import ValidationError as PydanticValidationError

from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.fold_plan import FoldPlan, KvDtype, LayerPlan, describe_errors
from kvfold.plugins.contract.record import Record

PresetName = Literal["identity", "horizon", "mqa", "character"]


class UnboundPlan(Record):
    """A plan that knows no model yet: a preset, or layers written by hand."""

    @property
    @abstractmethod
    def layer_kinds(self) -> tuple[LayerPlan, ...]:
        """Every kind of layer that it has."""

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
            `character` (MQA, neighbouring local layers of one RoPE share in pairs, windows and sinks).
        sliding_window: tokens a local layer sees, the current one included; a layer whose own window is no
            longer keeps that.
        sink_size: first tokens that a local layer always sees, unless it keeps its own window.
        head_sink: local layers have a learned logit per query head in place of sink tokens; needs
            sink_size 0. A layer that keeps its own window has none.
        global_every: one layer in so many keeps the horizon that the checkpoint gives it: the last of each
            run, or where the checkpoint has windows, the last of those that see furthest.
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
    kept = _kept_horizons(preset, shape)
    heads = 1 if preset.preset in ("mqa", "character") else shape.num_key_value_heads
    everywhere, windowed = preset.layer_kinds[0], preset.layer_kinds[-1]
    layers = []
    for index, own in enumerate(shape.windows):
        shorter = index not in kept and (own is None or preset.sliding_window < own)
        layer = windowed if shorter else everywhere.model_copy(update={"sliding_window": own})
        layers.append(layer.model_copy(update={"donor": index, "num_key_value_heads": heads}))
    if preset.preset == "character":
        local_layers = [index for index in range(len(layers)) if index not in kept]
        for donor, consumer in _pairs(local_layers, layers, shape):
            layers[consumer] = layers[consumer].model_copy(update={"donor": donor})
    try:
        return FoldPlan(
            num_attention_heads=shape.num_attention_heads, head_dim=shape.head_dim, layers=tuple(layers)
        )
    except PydanticValidationError as error:
        raise PlanError(describe_errors(f"preset {preset.preset}", error)) from error


def _kept_horizons(preset: Preset, shape: AttentionShape) -> set[int]:
    """Layers that see what they always saw: all, or of each run the last of those that see furthest."""
    layers = range(shape.num_hidden_layers)
    if not preset.is_windowed:
        return set(layers)
    every = preset.global_every
    runs = (layers[start : start + every] for start in layers[::every] if start + every <= len(layers))
    return {max(run, key=lambda index: (shape.windows[index] or inf, index)) for run in runs}


def _pairs(
    local_layers: Sequence[int], layers: Sequence[LayerPlan], shape: AttentionShape
) -> Iterator[tuple[int, int]]:
    """Neighbours among the local layers that may share a bank: the same RoPE, window and sinks."""

    def kind(index: int) -> tuple[object, ...]:
        return shape.ropes[index], layers[index].sliding_window, layers[index].sink_size

    donor = None
    for index in local_layers:
        if donor is not None and kind(donor) == kind(index):
            yield donor, index
            donor = None
        else:
            donor = index


def check_beside(plan: FoldPlan, shape: AttentionShape) -> None:
    """See that a plan shows no layer what the checkpoint hides from it, and mixes no RoPEs in a bank.

    Args:
        plan: with as many layers as the shape.
        shape: of the model that is to be folded.

    Raises:
        PlanError: a layer's window is longer than its own, it keeps its own and has sinks, or it reads keys
            that another RoPE has turned.
    """
    for index, (layer, own) in enumerate(zip(plan.layers, shape.windows, strict=True)):
        if own is not None and (layer.sliding_window or inf) > own:
            raise PlanError(
                f"layer {index}: sliding_window is {layer.sliding_window or 'absent (global)'}, the "
                f"checkpoint's own is {own}; a plan may only shorten it: set sliding_window: {own} or less"
            )
        if own is not None and layer.sliding_window == own and layer.sink_size:
            raise PlanError(
                f"layer {index}: sink_size is {layer.sink_size} under the checkpoint's own window of {own}, "
                "which hides the first tokens; set sink_size: 0, or a shorter sliding_window"
            )
        if shape.ropes[index] != shape.ropes[layer.donor]:
            raise PlanError(
                f"layer {index}: its donor {layer.donor} has another RoPE, so its keys are turned otherwise; "
                "share KV among layers of one RoPE"
            )
