"""What healing may change: the attention that folding changed, and the norms around it."""

from __future__ import annotations

from collections.abc import Iterable

from kvfold.export.fold.fold import is_folded
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.norms import BLOCK_NORMS
from kvfold.plugins.contract.errors import PlanError
from kvfold.plugins.contract.fold_plan import FoldPlan

FINAL_NORM = "model.norm.weight"


def changed_layers(config: ModelConfig, plan: FoldPlan) -> list[int]:
    """Layers whose attention differs from the original's: other banks, or another window.

    Raises:
        PlanError: there is none, so there is nothing to heal.
    """
    folded = {layer for bank in plan.banks if is_folded(bank, config) for layer in bank.layers}
    changed = [
        index
        for index, layer in enumerate(plan.layers)
        if index in folded or layer.sliding_window != config.sliding_windows[index]
    ]
    if not changed:
        raise PlanError("the plan folds nothing, so there is nothing to heal; remove the section heal")
    return changed


def trained_names(config: ModelConfig, plan: FoldPlan, names: Iterable[str]) -> list[str]:
    """Those of `names` that healing trains; every other tensor stays as it is, bit for bit."""
    parts = ("self_attn", *BLOCK_NORMS[config.norm_placement].present)
    prefixes = tuple(
        f"model.layers.{layer}.{part}." for layer in changed_layers(config, plan) for part in parts
    )
    return [name for name in names if name.startswith(prefixes) or name == FINAL_NORM]
