"""The recipe's section `plan`, a preset or a plan written by hand, and the FoldPlan that it means."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag
from pydantic import ValidationError as PydanticValidationError

from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan, describe_errors
from kvfold.plugins.contract.plan_presets import Preset, UnboundPlan, build_plan, check_beside


class WrittenPlan(UnboundPlan):
    """A plan written by hand, one entry per decoder layer.

    Attributes:
        page_size: tokens per KV page, a power of two of at least 16.
        layers: as in `plugins.contract.fold_plan.LayerPlan`, from layer 0 up.
    """

    page_size: int = 16
    layers: tuple[LayerPlan, ...] = Field(min_length=1)

    @property
    def layer_kinds(self) -> tuple[LayerPlan, ...]:
        """The layers themselves."""
        return self.layers


def _plan_kind(value: Any) -> str:
    """A plan with layers is written by hand; anything else is a preset."""
    layers = value.get("layers") if isinstance(value, dict) else getattr(value, "layers", None)
    return "preset" if layers is None else "layers"


PlanSection = Annotated[
    Annotated[Preset, Tag("preset")] | Annotated[WrittenPlan, Tag("layers")], Discriminator(_plan_kind)
]


def plan_for(section: PlanSection, shape: AttentionShape) -> FoldPlan:
    """The FoldPlan that a section means for a model of this shape.

    Raises:
        PlanError: the plan breaks a law, has another number of layers than the model, or widens what one of
            them sees.
    """
    if isinstance(section, Preset):
        return build_plan(section, shape)
    if len(section.layers) != shape.num_hidden_layers:
        raise PlanError(
            f"plan.layers of the recipe has {len(section.layers)} entries, "
            f"the model has {shape.num_hidden_layers} layers; write one entry per layer"
        )
    try:
        plan = FoldPlan(
            num_attention_heads=shape.num_attention_heads,
            head_dim=shape.head_dim,
            page_size=section.page_size,
            layers=section.layers,
        )
    except PydanticValidationError as error:
        raise PlanError(describe_errors("plan of the recipe", error)) from error
    check_beside(plan, shape)
    return plan
