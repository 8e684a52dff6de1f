"""Bring a recipe's bundle up to date in front of a user: check the target, run stages, show progress."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich import get_console

from kvfold.pipeline.build.tensorrt.architectures import architectures_of
from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.stage import target_stage
from kvfold.pipeline.workspace.stage_display import stage_display
from kvfold.plugins.contract.errors import TargetError

# Stages of every recipe, whose target then does not matter; an engine, also one that is to run here; the ends
# of a target's stages.
Until = Literal["calibration", "evaltext", "heal", "onnx", "build", "run", "report", "evaluate"]


def bring_up_to_date(
    name: str, root: Path, until: Until, target: str | None = None, architectures: tuple[int, ...] = ()
) -> Recipe:
    """Load a recipe, as `load_recipe` does, and bring a part of its bundle up to date.

    `run` is an engine that is to run here: asked for before it is built.

    Raises:
        TargetError: the recipe's target cannot be built, or not be run, here; raised before any work starts.
        KvfoldError: whatever the recipe or a stage raises.
    """
    recipe = load_recipe(name, target, architectures)
    last: str = until
    if until not in {stage.name for stage in STAGES}:
        _require_target(recipe, runs=until != "build")
        last = target_stage("build" if until == "run" else until, recipe.target)
    console = get_console()
    console.print(f"[bold]{recipe.name}[/] -> {root}", soft_wrap=True)
    with stage_display(console) as display:
        run_stages(recipe, root, STAGES, display, last)
    return recipe


def _require_target(recipe: Recipe, runs: bool) -> None:
    """Refuse a target that cannot be built, or not be run, here."""
    target = TARGETS[recipe.target]
    if (why_not := target.why_not_build()) is not None:
        raise TargetError(f"target {target.name} cannot be built here: {why_not}")
    if target.library:
        architectures_of(recipe)
    if runs and (why_not := target.why_not_run()) is not None:
        raise TargetError(f"target {target.name} cannot be run here: {why_not}")
