"""`kvfold inspect`: draw a plan."""

from __future__ import annotations

from pathlib import Path

import click
from rich import get_console

from kvfold.pipeline.commands.options.read_plan import read_plan
from kvfold.pipeline.commands.options.recipe_arguments import is_bundle, recipe_argument


@click.command("inspect")
@recipe_argument
def command(recipe: str) -> None:
    """Draw the plan of RECIPE, or of a bundle's folder, a line per layer, and its KV bytes.

    Of a bundle it also says in how many bits its linears run.

    \b
    Examples:
      kvfold inspect character      before anything is exported
      kvfold inspect bundles/compact   what a bundle holds
    """
    from kvfold.export.quantize.precision import Quantization
    from kvfold.pipeline.show.draw_plan import draw_plan
    from kvfold.runtime.bundle import QUANTIZATION, read_record

    console = get_console()
    console.print(draw_plan(*read_plan(recipe)))
    if is_bundle(recipe) and (Path(recipe) / QUANTIZATION).is_file():
        console.print(read_record(Path(recipe) / QUANTIZATION, Quantization).summary)
