"""What the commands share: RECIPE, --output, and running stages up to one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from rich.console import Console

from pipeline.progress import stage_display
from pipeline.recipe import Recipe, load_recipe, shipped_recipes
from pipeline.run_stages import StageOutcome, run_stages
from pipeline.stages import STAGES, TARGET_NEUTRAL
from pipeline.targets import TARGETS
from plugins.errors import TargetError

DEFAULT_RECIPE = "demo"
BUNDLES = Path("bundles")


class RecipeType(click.ParamType):
    """A recipe's path or shipped name; the shell completes both."""

    name = "recipe"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Shipped names, then files."""
        names = [CompletionItem(name) for name in shipped_recipes() if name.startswith(incomplete)]
        return [*names, CompletionItem(incomplete, type="file")]


def recipe_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE, `demo` when left out."""
    return click.argument("recipe", type=RecipeType(), default=DEFAULT_RECIPE)(function)


def output_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--output, the bundle's folder."""
    return click.option(
        "--output",
        "-o",
        type=click.Path(path_type=Path, file_okay=False),
        help="The bundle's folder.  [default: bundles/<recipe name>]",
    )(function)


def bundle_path(recipe: Recipe, output: Path | None) -> Path:
    """Where a recipe's bundle is."""
    return output or BUNDLES / recipe.name


def _check_target(name: str) -> None:
    why_not = TARGETS[name].why_not()
    if why_not is not None:
        raise TargetError(f"target {name} cannot be built here: {why_not}")


def bring_up_to_date(
    name: str, output: Path | None, until: str | None, console: Console
) -> tuple[Recipe, Path, list[StageOutcome]]:
    """Load a recipe and run its stages up to `until`.

    Raises:
        TargetError: the recipe's target cannot be built here; raised before any work starts.
        KvfoldError: whatever the recipe or a stage raises.
    """
    recipe = load_recipe(name)
    if until not in TARGET_NEUTRAL:
        _check_target(recipe.target)
    root = bundle_path(recipe, output)
    console.print(f"[bold]{recipe.name}[/] -> {root}")
    with stage_display(console) as display:
        outcomes = run_stages(recipe, root, STAGES, display, until)
    return recipe, root, outcomes
