"""`kvfold demo`: every stage, then a conversation and all numbers."""

from __future__ import annotations

from pathlib import Path

import click
from rich import get_console

from kvfold.pipeline.commands.options.recipe_arguments import bundle_path, output_option, recipe_argument
from kvfold.runtime.llm import LLM
from kvfold.runtime.sampling.params import SamplingParams

# Each turn leans on the one before, so the cache has something to give. Simple, as the model is small.
SYSTEM = "You are a helpful assistant."
QUESTIONS = (
    "What is the capital of France?",
    "What is it famous for?",
    "How would I say 'good morning' there?",
)
MAX_TOKENS = 96


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
    from kvfold.pipeline.chat.show_reply import show_reply
    from kvfold.pipeline.quality.validate.quality_tables import quality_table, verdict_table
    from kvfold.pipeline.report.report_results import page_file, read_results, require_passed
    from kvfold.pipeline.show.cache_tables import kv_bytes_table, turns_table
    from kvfold.pipeline.show.terminal import draw_table

    root = bundle_path(recipe, output)
    target = bring_up_to_date(recipe, root, "report").target
    results = read_results(root, target)
    console = get_console()
    console.print()
    params = SamplingParams(max_tokens=MAX_TOKENS)
    with LLM.load(root, target=target).session(SYSTEM, on_overflow="drop_oldest") as session:
        turns = []
        for question in QUESTIONS:
            console.print(f"[bold cyan]> {question}[/]", highlight=False)
            turns.append(show_reply(session.stream(question, params), console).usage)
    tables = (
        turns_table(turns),
        kv_bytes_table(results.kv_bytes),
        quality_table(results.measurements),
        verdict_table(results.verdicts),
    )
    console.print(*map(draw_table, tables))
    console.print(f"\nReport: {root / page_file(target)}    Chat: kvfold run {root}")
    require_passed(results)
