"""`kvfold plan`: search a plan by measurement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import get_console

from kvfold.pipeline.commands.options.recipe_arguments import recipe_argument

if TYPE_CHECKING:
    from kvfold.export.search.space import ByteTarget


class ByteTargetType(click.ParamType["ByteTarget"]):
    """Bytes per token at a length."""

    name = "target"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> ByteTarget:
        """Refuse what is no BYTES@LENGTH."""
        from kvfold.pipeline.studies.search.goal import parse_target

        try:
            return parse_target(value)
        except ValueError:
            self.fail(f"{value!r} is no BYTES@LENGTH; write e.g. 2048@8k", param, ctx)


@click.command("plan")
@recipe_argument
@click.option(
    "--target-bytes",
    "targets",
    type=ByteTargetType(),
    multiple=True,
    metavar="BYTES@LENGTH",
    help="At most BYTES of resident KV per token of a sequence of LENGTH tokens (k is 1024). May be "
    "repeated: all hold.",
)
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="NAT",
    help="The smallest plan whose measured KL a token, before healing, is at most this.",
)
@click.option(
    "--share-distant-globals", is_flag=True, help="Let global layers share KV over the layers between them."
)
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The recipe to write: RECIPE with its plan replaced.",
)
def command(
    recipe: str,
    targets: tuple[ByteTarget, ...],
    max_kl: float | None,
    share_distant_globals: bool,
    output: Path,
) -> None:
    """Search the plan of RECIPE by measurement, and show why it is so.

    Each layer is measured under windows, with one KV head, sharing with the next one, and with an int8 cache;
    then the layers that must stay global, banks of three that a plan would use, and whole plans. Everything
    is folded in closed form: what healing wins back is not in the figures. Dials and text are the recipe's
    section `search`. Measurements are kept beside the output; Ctrl-C loses none.

    \b
    Examples:
      kvfold plan my.yaml --target-bytes 2048@8k -o small.yaml     the best plan within the bytes
      kvfold plan my.yaml --max-kl 0.05 -o careful.yaml            the smallest plan within the loss
    """
    if not targets and max_kl is None:
        raise click.UsageError("Say what the plan must reach: --target-bytes, --max-kl, or both.")
    from kvfold.pipeline.studies.search.goal import make_goal
    from kvfold.pipeline.studies.search.run_search import run_search

    goal = make_goal(targets, max_kl, share_distant_globals)
    run_search(recipe, goal, output, get_console())
    next_commands = f"kvfold inspect {output}, then kvfold eval {output}"
    get_console().print(f"Wrote {output}. Next: {next_commands}", soft_wrap=True)
