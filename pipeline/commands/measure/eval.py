"""`kvfold eval`: what does the fold cost?"""

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


@click.command("eval")
@recipe_argument
@output_option
@target_options
def command(recipe: str, output: Path | None, target: str | None, architectures: tuple[int, ...]) -> None:
    """Measure what RECIPE's fold costs, with confidence intervals.

    Perplexity by window length; KL, agreement and flips beside the noise floor of bfloat16; retrieval
    of codes by length and depth, inside and outside the window; last words of passages; slips, the words
    in replies to everyday openers that the original would hardly have said. The original model takes every
    test too. Sizes and texts are the recipe's section `evaluate`; the results go to
    report/<target>/evaluation.json in the bundle, and as a page to evaluation.html.

    \b
    Examples:
      kvfold eval            the recipe of the demo
      kvfold eval mqa        what one KV head costs
    """
    from kvfold.pipeline.bring_up_to_date import bring_up_to_date
    from kvfold.pipeline.quality.evaluate.evaluation import evaluation_file, read_evaluation
    from kvfold.pipeline.quality.evaluate.evaluation_tables import evaluation_tables
    from kvfold.pipeline.recipe.load_recipe import load_recipe
    from kvfold.pipeline.report.evaluation_page import write_evaluation_page
    from kvfold.pipeline.show.terminal import draw_table
    from kvfold.pipeline.studies.evaluation_outlook import evaluation_tasks
    from kvfold.pipeline.studies.outlook import say_outlook

    root = bundle_path(recipe, output)
    say_outlook(get_console(), evaluation_tasks(load_recipe(recipe, target, architectures), root))
    evaluated = bring_up_to_date(recipe, root, "evaluate", target, architectures)
    evaluation, console = read_evaluation(root, evaluated.target), get_console()
    console.print(*map(draw_table, evaluation_tables(evaluation)))
    page = write_evaluation_page(root, evaluated.name, evaluated.target, evaluation)
    console.print(f"Wrote {root / evaluation_file(evaluated.target)} and {page}")
