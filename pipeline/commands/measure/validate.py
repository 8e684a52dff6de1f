"""`kvfold validate`: is the engine still the model it was made from?"""

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


@click.command("validate")
@recipe_argument
@output_option
@target_options
def command(recipe: str, output: Path | None, target: str | None, architectures: tuple[int, ...]) -> None:
    """Compare the original, the folded model and the engine over the same tokens.

    Perplexity, KL and top-1 agreement; the engine runs paged and in chunks, its later turns on the
    cache of the earlier ones. Exit code 1 when a threshold of RECIPE is missed.

    \b
    Examples:
      kvfold validate            the recipe of the demo
      kvfold validate identity   nothing folded: max |dlogit| against the original
    """
    from kvfold.pipeline.bring_up_to_date import bring_up_to_date
    from kvfold.pipeline.quality.validate.quality_tables import quality_table, verdict_table
    from kvfold.pipeline.report.report_results import page_file, read_results, require_passed
    from kvfold.pipeline.show.terminal import draw_table

    root = bundle_path(recipe, output)
    validated = bring_up_to_date(recipe, root, "report", target, architectures).target
    results = read_results(root, validated)
    console = get_console()
    console.print(*map(draw_table, (quality_table(results.measurements), verdict_table(results.verdicts))))
    console.print(f"Report: {root / page_file(validated)}", soft_wrap=True)
    require_passed(results)
