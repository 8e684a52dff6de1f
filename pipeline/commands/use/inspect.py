"""`kvfold inspect`: draw a plan."""

from __future__ import annotations

import click
from rich import get_console

from kvfold.pipeline.commands.options.read_plan import read_plan
from kvfold.pipeline.commands.options.recipe_arguments import recipe_argument


@click.command("inspect")
@recipe_argument
def command(recipe: str) -> None:
    """Draw the plan of RECIPE, or of a bundle's folder, a line per layer, and its KV bytes.

    \b
    Examples:
      kvfold inspect character      before anything is exported
      kvfold inspect bundles/compact   what a bundle holds
    """
    from kvfold.pipeline.show.draw_plan import draw_plan

    get_console().print(draw_plan(*read_plan(recipe)))
