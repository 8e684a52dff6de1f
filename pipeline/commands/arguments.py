"""What the commands share: the RECIPE argument and --output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from pipeline.recipe_files import BUNDLES, DEFAULT_RECIPE, find_recipe, shipped_recipes
from runtime.bundle import MANIFEST


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


def is_bundle(argument: str) -> bool:
    """Whether RECIPE is a bundle's folder; any other folder may bear the name of a shipped recipe."""
    return (Path(argument) / MANIFEST).is_file()


def bundle_path(recipe: str, output: Path | None) -> Path:
    """Where a recipe's bundle is; raises RecipeError where there is no such recipe."""
    return output or BUNDLES / find_recipe(recipe).stem
