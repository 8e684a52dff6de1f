"""Bring a recipe's bundle up to date in front of a user: check the target, run stages, show progress."""

from __future__ import annotations

from pathlib import Path

from rich import get_console

from pipeline.progress import stage_display
from pipeline.recipe import Recipe, load_recipe
from pipeline.run_stages import StageOutcome, run_stages
from pipeline.stages import STAGES, TARGET_NEUTRAL
from pipeline.targets import TARGETS
from plugins.errors import TargetError


def bring_up_to_date(name: str, root: Path, until: str | None = None) -> tuple[Recipe, list[StageOutcome]]:
    """Load a recipe and run its stages up to `until`; None runs all.

    Raises:
        TargetError: the recipe's target cannot be built here; raised before any work starts.
        KvfoldError: whatever the recipe or a stage raises.
    """
    recipe = load_recipe(name)
    if until not in TARGET_NEUTRAL:
        why_not = TARGETS[recipe.target].why_not()
        if why_not is not None:
            raise TargetError(f"target {recipe.target} cannot be built here: {why_not}")
    console = get_console()
    console.print(f"[bold]{recipe.name}[/] -> {root}")
    with stage_display(console) as display:
        return recipe, run_stages(recipe, root, STAGES, display, until)
