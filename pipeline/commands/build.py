"""`kvfold build`: everything up to the engine."""

from __future__ import annotations

from pathlib import Path

import click
from rich import get_console

from pipeline.commands.arguments import bundle_path, output_option, recipe_argument


@click.command("build")
@recipe_argument
@output_option
def command(recipe: str, output: Path | None) -> None:
    """Export what is not exported yet, then build the engine of RECIPE's target.

    \b
    Examples:
      kvfold build            the demo recipe
      kvfold build identity   nothing folded: the baseline to compare with
    """
    from pipeline.bring_up_to_date import bring_up_to_date

    root = bundle_path(recipe, output)
    bring_up_to_date(recipe, root, until="build")
    get_console().print(f"Built in {root}. Next: kvfold run {recipe}")
