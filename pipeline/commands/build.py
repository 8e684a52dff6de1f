"""`kvfold build`: everything up to the engine."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from pipeline.commands.arguments import bring_up_to_date, output_option, recipe_argument


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
    console = Console()
    _, root, _ = bring_up_to_date(recipe, output, "build", console)
    console.print(f"Built in {root}. Next: kvfold run {recipe}")
