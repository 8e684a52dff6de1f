"""`kvfold ablate`: is the closed form worth it?"""

from __future__ import annotations

from pathlib import Path

import click
from rich import get_console

from kvfold.pipeline.commands.options.recipe_arguments import RecipeType, bundle_path, output_option


@click.command("ablate")
@click.argument("recipe", type=RecipeType())
@output_option
def command(recipe: str, output: Path | None) -> None:
    """Fold RECIPE's model under its plan once per way to merge heads, and measure each.

    The closed form with fitted and even RoPE slots, principal components that ignore RoPE, the mean of
    aligned heads, the plain mean, the first head; each with least squares around it, layer by layer, and
    without. Perplexity and KL are of the float fold, before healing, on the text of the section
    `evaluate`. The results go to report/ablation.json and ablation.md in the bundle.

    \b
    Examples:
      kvfold ablate mqa                     one KV head
      kvfold ablate character -o /tmp/mine  heads, and layers that share
    """
    from kvfold.pipeline.show.terminal import draw_table
    from kvfold.pipeline.studies.ablation.ablation import MARKDOWN, RESULTS, measure_ablation
    from kvfold.pipeline.studies.ablation.ablation_tables import ablation_tables

    root = bundle_path(recipe, output)
    ablation = measure_ablation(recipe, root)
    console = get_console()
    console.print(*map(draw_table, ablation_tables(ablation)))
    console.print(f"Wrote {root / RESULTS} and {MARKDOWN.name}", soft_wrap=True)
