"""`kvfold export`: everything up to the target-neutral ONNX graph."""

from __future__ import annotations

from pathlib import Path

import click
from rich import get_console

from kvfold.pipeline.commands.options.recipe_arguments import (
    bundle_path,
    output_option,
    recipe_argument,
    same_arguments,
)


@click.command("export")
@recipe_argument
@output_option
def command(recipe: str, output: Path | None) -> None:
    """Fold RECIPE's checkpoint, calibrate int8, and write model.onnx into the bundle.

    \b
    Examples:
      kvfold export                       the recipe of the demo
      kvfold export mqa                   a shipped recipe
      kvfold export my.yaml -o /tmp/mine  your own recipe, into a folder of your choice
    """
    from kvfold.pipeline.bring_up_to_date import bring_up_to_date

    root = bundle_path(recipe, output)
    bring_up_to_date(recipe, root, "onnx")
    get_console().print(f"Exported to {root}. Next: kvfold build {same_arguments(recipe, output)}")
