"""Bring a recipe's bundle up to date in front of a user: check the target, run stages, show progress."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich import get_console

from kvfold.pipeline.build.tensorrt.architectures import architectures_of
from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.stages.stages import STAGES, build_stage, evaluate_stage, report_stage
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.stage_display import stage_display
from kvfold.plugins.contract.errors import TargetError

# The first ones make no engine: the target does not matter.
Until = Literal["calibration", "evaltext", "heal", "onnx", "build", "run", "report", "evaluate"]
NEUTRAL = ("calibration", "evaltext", "heal", "onnx")


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
    backend = TARGETS[recipe.target]
    if until not in NEUTRAL:
        _require(backend.name, "built", backend.why_not_build())
        if recipe.target in ("tensorrt", "tensorrt-rtx"):
            architectures_of(recipe)
    if until in ("run", "report", "evaluate"):
        _require(backend.name, "run", backend.why_not_run())
    build = build_stage(backend.name)
    last = {
        "build": build,
        "run": build,
        "report": report_stage(backend.name),
        "evaluate": evaluate_stage(backend.name),
    }.get(until, until)
    console = get_console()
    console.print(f"[bold]{recipe.name}[/] -> {root}")
    with stage_display(console) as display:
        run_stages(recipe, root, STAGES, display, last)
    return recipe


def _require(target: str, what: str, why_not: str | None) -> None:
    if why_not is not None:
        raise TargetError(f"target {target} cannot be {what} here: {why_not}")
