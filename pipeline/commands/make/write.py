"""`kvfold write`: text by the model itself, as a file."""

from __future__ import annotations

from pathlib import Path

import click
from rich import get_console

from kvfold.pipeline.commands.options.recipe_arguments import recipe_argument

CONTEXT = 1_024  # tokens that the model has before it at most: a conversation, and what came before it


@click.command("write")
@recipe_argument
@click.option("--tokens", type=click.IntRange(min=1), default=16_384, show_default=True, help="How much.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another, another text."
)
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The .jsonl file to write.",
)
def command(recipe: str, tokens: int, seed: int, output: Path) -> None:
    """Let RECIPE's model, unfolded, write conversations and texts to a file.

    A recipe may name the file wherever it wants a text (`source: FILE`): to calibrate, to heal, to compare.
    The same seed writes the same file on the same machine. Ctrl-C loses nothing.

    \b
    Examples:
      kvfold write my.yaml -o chats.jsonl                         16,384 tokens
      kvfold write my.yaml --tokens 100000 --seed 1 -o more.jsonl  others
    """
    from kvfold.pipeline.recipe.load_recipe import load_recipe
    from kvfold.pipeline.recipe.recipe_sections import TextSection
    from kvfold.pipeline.show.watch import Work, open_watch
    from kvfold.pipeline.texts.written_file import write_file
    from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
    from kvfold.pipeline.workspace.workspace import Workspace
    from kvfold.pipeline.workspace.write_bundle import name_disk_errors

    checkpoint = read_checkpoint(Workspace(load_recipe(recipe), output.parent))
    context = min(CONTEXT, checkpoint.config.max_position_embeddings)
    section = TextSection(tokens=tokens, sequence_length=context, seed=seed)
    work = Work("write", "the model writes")
    with (
        name_disk_errors(output.parent),
        open_watch(get_console()) as watch,
        watch.work(work) as progress,
    ):
        output.parent.mkdir(parents=True, exist_ok=True)
        count = write_file(section, checkpoint, output, progress)
    done = f"Wrote {output}: {count} documents. In a recipe: `source: {output.name}`"
    get_console().print(done, soft_wrap=True)
