"""`kvfold demo`: every stage, then a conversation and all numbers."""

from __future__ import annotations

import os
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
from kvfold.pipeline.recipe.recipe_files import DEFAULT_RECIPE

if TYPE_CHECKING:
    from rich.console import Console

    from kvfold.runtime.metrics import Usage

# Each turn leans on the one before, so the cache has something to give. Simple, as the model is small.
SYSTEM = "You are a helpful assistant."
QUESTIONS = (
    "What is the capital of France?",
    "What is it famous for?",
    "What language do they speak there?",
)
MAX_TOKENS = 96
# What to try next, by command.
NEXT = {
    "run": "talk to it",
    "inspect": "what was folded, layer by layer",
    "eval": "what the fold costs, with intervals",
    "bench": "how fast it is",
}


@click.command("demo")
@recipe_argument
@output_option
def command(recipe: str, output: Path | None) -> None:
    """Run every stage of RECIPE, hold a three-turn conversation, print what folding did.

    A second run skips the stages that did not change. Exit code 1 when a threshold is missed.

    \b
    Examples:
      kvfold demo             SmolLM2-135M-Instruct with 20 times less KV, healed by training
      kvfold demo horizon     the same model, five layers of six see 1,024 tokens, int8 KV
    """
    from kvfold.pipeline.bring_up_to_date import bring_up_to_date
    from kvfold.pipeline.quality.validate.quality_tables import quality_table, verdict_table
    from kvfold.pipeline.report.report_results import page_file, read_results, require_passed
    from kvfold.pipeline.show.cache_tables import kv_bytes_table, turns_table
    from kvfold.pipeline.show.terminal import draw_table

    root = bundle_path(recipe, output)
    target = bring_up_to_date(recipe, root, "report").target
    results = read_results(root, target)
    console = get_console()
    console.print()
    tables = (
        turns_table(_converse(root, target, console)),
        kv_bytes_table(results.kv_bytes),
        quality_table(results.measurements),
        verdict_table(results.verdicts),
    )
    console.print(*map(draw_table, tables))
    console.print(f"\nThe whole report: {root / page_file(target)}\nNext:", soft_wrap=True)
    for name, what in NEXT.items():
        console.print(
            f"  {next_line(name, recipe, output)}   [dim]{what}[/]", highlight=False, soft_wrap=True
        )
    require_passed(results)


def _converse(root: Path, target: str, console: Console) -> list[Usage]:
    """Ask the questions, show the replies; what each turn cost."""
    from kvfold.pipeline.chat.show_reply import show_reply
    from kvfold.runtime.llm.llm import LLM
    from kvfold.runtime.sampling.params import SamplingParams

    params, turns = SamplingParams(max_tokens=MAX_TOKENS), []
    with LLM.load(root, target=target).session(SYSTEM, on_overflow="drop_oldest") as session:
        for question in QUESTIONS:
            console.print(f"[bold cyan]> {question}[/]", highlight=False)
            turns.append(show_reply(session.stream(question, params), console).usage)
    return turns


def next_line(command: str, recipe: str, output: Path | None) -> str:
    """A command as its reader has it: through make, whose environment is not on the path, or by itself."""
    if output is not None:
        takes_bundle = command in ("run", "inspect")
        return f"kvfold {command} {output if takes_bundle else same_arguments(recipe, output)}"
    if "MAKELEVEL" not in os.environ:
        return f"kvfold {command} {recipe}"
    return f"make {command}" if recipe == DEFAULT_RECIPE else f"make {command} RECIPE={recipe}"
