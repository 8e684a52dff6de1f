"""`kvfold frontier`: how small, at what cost?"""

from __future__ import annotations

from pathlib import Path

import click
from rich import get_console

from kvfold.pipeline.commands.options.recipe_arguments import RecipeType
from kvfold.pipeline.recipe.recipe_files import BUNDLES


@click.command("frontier")
@click.argument("recipes", nargs=-1, type=RecipeType(), metavar="[RECIPE]...")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=BUNDLES / "frontier",
    show_default=True,
    help="Where the picture, the tables and each rung's measurements go.",
)
def command(recipes: tuple[str, ...], output: Path) -> None:
    """Draw KV bytes against KL and perplexity for a ladder of recipes that fold one model ever deeper.

    Without a RECIPE the shipped ones are the ladder. Each is folded, and healed where it says so, in its own
    bundle, bundles/<recipe>, and held in float against the original on the text of the first one's section
    `evaluate`. What did not change is not measured again. The figures go to frontier.svg, frontier.md and
    frontier.json.

    \b
    Examples:
      kvfold frontier                                      the shipped recipes
      kvfold frontier identity mine.yaml healed.yaml -o f  your own ladder
    """
    from kvfold.pipeline.show.terminal import draw_table
    from kvfold.pipeline.studies.frontier.frontier import measure_frontier
    from kvfold.pipeline.studies.frontier.frontier_tables import frontier_tables
    from kvfold.pipeline.studies.frontier.ladder import SHIPPED_LADDER

    frontier = measure_frontier(recipes or SHIPPED_LADDER, output)
    console = get_console()
    console.print(*map(draw_table, frontier_tables(frontier)))
    console.print(f"Wrote {output / 'frontier.svg'}, frontier.md and frontier.json", soft_wrap=True)
