"""What healing may change: the attention that folding changed, and the norms around it."""

from __future__ import annotations

from collections.abc import Iterable

from kvfold.export.fold.fold import is_folded
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.fold_plan import FoldPlan

FINAL_NORM = "model.norm.weight"


def changed_layers(config: ModelConfig, plan: FoldPlan) -> list[int]:
    """Layers whose attention differs from the original's: other banks, or a window.

    Raises:
        PlanError: there is none, so there is nothing to heal.
    """
    folded = {layer for bank in plan.banks if is_folded(bank, config) for layer in bank.layers}
    changed = [
        index
        for index, layer in enumerate(plan.layers)
        if index in folded or layer.sliding_window is not None
    ]
    if not changed:
        raise PlanError("the plan folds nothing, so there is nothing to heal; remove the section heal")
    return changed


def trained_names(config: ModelConfig, plan: FoldPlan, names: Iterable[str]) -> list[str]:
    """Those of `names` that healing trains; every other tensor stays as it is, bit for bit."""
    prefixes = tuple(
        f"model.layers.{layer}.{part}"
        for layer in changed_layers(config, plan)
        for part in ("self_attn.", "input_layernorm.", "post_attention_layernorm.")
    )
    return [name for name in names if name.startswith(prefixes) or name == FINAL_NORM]
