"""What the commands share: the RECIPE argument and --output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.recipe.recipe_files import BUNDLES, DEFAULT_RECIPE, find_recipe, shipped_recipes


class RecipeType(click.ParamType[str]):
    """A recipe's path or shipped name; the shell completes both."""

    name = "recipe"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Shipped names, then files."""
        names = [CompletionItem(name) for name in shipped_recipes() if name.startswith(incomplete)]
        return [*names, CompletionItem(incomplete, type="file")]


def recipe_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE, the demo's when left out."""
    return click.argument("recipe", type=RecipeType(), default=DEFAULT_RECIPE)(function)


def output_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--output, the bundle's folder."""
    return click.option(
        "--output",
        "-o",
        type=click.Path(path_type=Path, file_okay=False),
        help="The bundle's folder.  [default: bundles/<recipe name>]",
    )(function)


def same_arguments(recipe: str, output: Path | None) -> str:
    """What a next command is given to go on with this one's bundle."""
    return recipe if output is None else f"{recipe} -o {output}"


class ArchitecturesType(click.ParamType[tuple[int, ...]]):
    """SM versions separated by commas."""

    name = "sm"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Refuse what is no number."""
        if isinstance(value, tuple):  # the default
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of SM versions; write e.g. 80,86,89,120", param, ctx)


def target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--target and --sm, in place of the recipe's own."""
    function = click.option(
        "--sm",
        "architectures",
        type=ArchitecturesType(),
        default=(),
        metavar="80,86,...",
        help="GPU architectures that a cuda or tensorrt-rtx engine is for.  [default: the recipe's]",
    )(function)
    return click.option(
        "--target",
        type=click.Choice(list(TARGETS)),
        help="What to build the engine for.  [default: the recipe's]",
    )(function)


def is_bundle(argument: str) -> bool:
    """Whether RECIPE is a bundle's folder; any other folder may bear the name of a shipped recipe."""
    from kvfold.runtime.bundle import MANIFEST

    return (Path(argument) / MANIFEST).is_file()


def bundle_path(recipe: str, output: Path | None) -> Path:
    """Where a recipe's bundle is; raises RecipeError where there is no such recipe."""
    return output or BUNDLES / find_recipe(recipe).stem
