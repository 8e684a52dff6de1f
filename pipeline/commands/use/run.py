"""`kvfold run`: chat with a bundle in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import get_console

from kvfold.pipeline.commands.options.recipe_arguments import (
    bundle_path,
    is_bundle,
    output_option,
    recipe_argument,
    target_options,
)
from kvfold.pipeline.commands.options.sampling_options import sampling_options

if TYPE_CHECKING:
    from rich.console import Console

    from kvfold.runtime.metrics import Usage
    from kvfold.runtime.sampling.params import SamplingParams
    from kvfold.runtime.session import Session


@click.command("run")
@recipe_argument
@output_option
@target_options
@click.option("--system", help="A system message for the conversation.")
@sampling_options
def command(
    recipe: str,
    output: Path | None,
    target: str | None,
    architectures: tuple[int, ...],
    system: str | None,
    params: SamplingParams,
) -> None:
    """Chat with RECIPE's model; RECIPE may also be the folder of a built bundle.

    Stages that are not up to date run first. An empty line or Ctrl-D ends the chat; after each reply
    a line says how many prompt tokens were computed and how many came from the cache.

    \b
    Examples:
      kvfold run                                  the demo model
      kvfold run bundles/compact --system "Be brief"  a built bundle; needs no torch
      kvfold run --temperature 0.7 --seed 1       sampled instead of greedy
      echo "What is a KV cache?" | kvfold run     a single question
    """
    from kvfold.runtime.llm import DEFAULT_TARGET, LLM
    from kvfold.runtime.status import published

    root = Path(recipe)
    if is_bundle(recipe):
        if architectures:
            raise click.UsageError("--sm builds an engine, and a bundle's folder runs as it is; leave it out")
    else:
        from kvfold.pipeline.bring_up_to_date import bring_up_to_date

        root = bundle_path(recipe, output)
        target = bring_up_to_date(recipe, root, "run", target, architectures).target
    console = get_console()
    llm = LLM.load(root, target=target or DEFAULT_TARGET)
    with published(llm, str(root)), llm.session(system) as session:
        while (question := _ask(console)) is not None:
            stream_turn(session, question, params, console)


def _ask(console: Console) -> str | None:
    """The next question, or None at the end."""
    try:
        return console.input("[bold cyan]> [/]").strip() or None
    except EOFError:
        return None


def stream_turn(session: Session, question: str, params: SamplingParams, console: Console) -> Usage:
    """Print a reply as it comes, then what it cost."""
    for chunk in session.stream(question, params):
        console.out(chunk.text, end="", highlight=False)
        if chunk.completion is not None:
            usage = chunk.completion.usage
    console.print(f"\n[dim]{describe_usage(usage)}[/]\n", highlight=False)
    return usage


def describe_usage(usage: Usage) -> str:
    """`42 tokens prefilled, 118 reused, first token after 61 ms, 97.3 tokens/s`."""
    parts = [f"{usage.prefilled_tokens} tokens prefilled", f"{usage.reused_tokens} reused"]
    if usage.time_to_first_token is not None:
        parts.append(f"first token after {usage.time_to_first_token * 1000:.0f} ms")
    if usage.tokens_per_second is not None:
        parts.append(f"{usage.tokens_per_second:.1f} tokens/s")
    return ", ".join(parts)
