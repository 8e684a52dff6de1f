"""`kvfold heal`: everything up to the healed weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import get_console

from kvfold.pipeline.commands.options.recipe_arguments import (
    bundle_path,
    output_option,
    recipe_argument,
    same_arguments,
)

if TYPE_CHECKING:
    from kvfold.pipeline.show.table import Table


@click.command("heal")
@recipe_argument
@output_option
def command(recipe: str, output: Path | None) -> None:
    """Fold RECIPE's checkpoint, then train what folding changed, as its section `heal` says.

    Training resumes where Ctrl-C or a crash left it. What it learned becomes adapter.safetensors in the
    bundle; another recipe for the same model and plan may name that file: `heal: {adapter: FILE}`.

    \b
    Examples:
      kvfold heal my.yaml                  fold, train, show the loss
      kvfold heal my.yaml -o /tmp/mine     into a folder of your choice
    """
    from kvfold.pipeline.bring_up_to_date import bring_up_to_date
    from kvfold.pipeline.recipe.load_recipe import load_recipe
    from kvfold.pipeline.show.terminal import draw_table
    from kvfold.pipeline.workspace.workspace import ADAPTER, HEAL_LOSSES
    from kvfold.plugins.contract.errors import RecipeError

    if load_recipe(recipe).training is None:
        raise RecipeError(
            f"recipe {recipe} has nothing to train by; add a section to it, for example "
            "`heal: {tokens: 1000000, text: {source: my.jsonl, tokens: 1000000}}`"
        )
    root = bundle_path(recipe, output)
    bring_up_to_date(recipe, root, "heal")
    get_console().print(draw_table(loss_table((root / HEAL_LOSSES).read_text())))
    again = same_arguments(recipe, output)
    if kept := worse_than_before((root / HEAL_LOSSES).read_text()):
        get_console().print(kept)
    get_console().print(f"Healed; the adapter is {root / ADAPTER}. Next: kvfold build {again}")


def loss_table(log: str) -> Table:
    """The loss at the beginning and the end of each step, means over a tenth of its updates."""
    from kvfold.pipeline.show.table import Table

    steps = groupby((json.loads(line) for line in log.splitlines()), key=lambda line: line["step"])
    return Table.of(
        "",
        ("step", "updates", "loss at first", "loss at last"),
        ((step, *_loss_cells([entry["loss"] for entry in entries])) for step, entries in steps),
    )


def worse_than_before(log: str) -> str:
    """Says so where a training by the clock made held-out text worse; else nothing."""
    losses = {line["step"]: line["loss"] for line in map(json.loads, log.splitlines())}
    before, after = (losses.get(step, 0.0) for step in ("before", "after"))
    if after < before or "after" not in losses:
        return ""
    return (
        f"Held-out text came to {after:.4f} nat from {before:.4f}, so what training began with is kept; "
        "lower heal.learning_rate, or give it more seconds"
    )


def _loss_cells(losses: Sequence[float]) -> tuple[str, str, str]:
    from statistics import mean

    tenth = max(1, len(losses) // 10)
    return str(len(losses)), f"{mean(losses[:tenth]):.4f}", f"{mean(losses[-tenth:]):.4f}"
