"""`kvfold build`: everything up to the engine."""

from __future__ import annotations

from pathlib import Path

import click
from rich import get_console

from kvfold.pipeline.commands.options.recipe_arguments import (
    bundle_path,
    output_option,
    recipe_argument,
    target_options,
)


@click.command("build")
@recipe_argument
@output_option
@target_options
def command(recipe: str, output: Path | None, target: str | None, architectures: tuple[int, ...]) -> None:
    """Export what is not exported yet, then build the engine of RECIPE's target.

    \b
    Examples:
      kvfold build                                            the recipe of the demo
      kvfold build identity                                   nothing folded: the baseline
      kvfold build --target tensorrt-rtx --sm 80,86,89,120    plans for four GPU generations; needs no GPU
    """
    from kvfold.pipeline.bring_up_to_date import bring_up_to_date
    from kvfold.runtime.llm.llm import DEFAULT_TARGET

    root = bundle_path(recipe, output)
    built = bring_up_to_date(recipe, root, "build", target, architectures).target
    target_option = "" if built == DEFAULT_TARGET else f" --target {built}"
    get_console().print(f"Built {root / 'engine' / built}. Next: kvfold run {root}{target_option}")
