"""Tables for the terminal: quality, thresholds, KV bytes, turns of a conversation; and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from kvfold.pipeline.quality.validate.measurements import ENGINE, FOLDED, ORIGINAL, Measurements, Verdict
from kvfold.plugins.contract.kv_bytes import KvBytes, format_bytes
from kvfold.runtime.metrics import Usage


def make_table(title: str, *columns: str) -> Table:
    """A frameless table: first column left, figures right."""
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: first column left, figures right."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(columns) - 1) + "|", *lines[1:], ""])


def quality_table(measurements: Measurements) -> Table:
    """Perplexity, KL and agreement of folded model and engine against the original."""
    title = (
        f"{measurements.tokens:,} tokens in sequences of {measurements.sequence_length:,}; "
        f"text: {measurements.text}"
    )
    table = make_table(title, "", "perplexity", "KL mean", "median", "p99", "top-1")
    original = measurements.subjects[ORIGINAL]
    table.add_row("original", f"{original.perplexity:.3f}", "", "", "", "")
    for reference, candidate in ((ORIGINAL, FOLDED), (ORIGINAL, ENGINE), (FOLDED, ENGINE)):
        pair = measurements.comparison(reference, candidate)
        name = candidate if reference == ORIGINAL else f"{candidate} against {reference}"
        perplexity = f"{measurements.subjects[candidate].perplexity:.3f}" if reference == ORIGINAL else ""
        figures = (f"{value:.2g}" for value in (pair.kl_mean, pair.kl_median, pair.kl_p99))
        table.add_row(name, perplexity, *figures, f"{pair.top1_agreement:.2%}")
    return table


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Each threshold of the recipe and whether it is met."""
    table = make_table("Thresholds of the recipe", "", "measured", "limit", "")
    for verdict in verdicts:
        mark = Text("met", style="green") if verdict.passed else Text("MISSED", style="bold red")
        table.add_row(verdict.meaning, f"{verdict.measured:.5g}", f"{verdict.limit:g}", mark)
    return table


def kv_bytes_table(rows: Sequence[KvBytes]) -> Table:
    """KV bytes of a new token (context length 1) and of whole contexts, before and after."""
    table = make_table("KV cache of one sequence", "context", "original (bf16)", "folded", "smaller")
    for row in rows:
        name = "new token" if row.context_length == 1 else f"{row.context_length:,} tokens"
        style = "bold green" if row.reduction > 1 else "bold red"
        table.add_row(
            name,
            format_bytes(row.original),
            format_bytes(row.folded),
            Text(f"{row.reduction:.1f} x", style=style),
        )
    return table


def turns_table(turns: Sequence[Usage]) -> Table:
    """What each turn of a conversation cost."""
    table = make_table(
        "Conversation", "turn", "prompt", "reused", "prefilled", "generated", "first token", "tokens/s"
    )
    for number, usage in enumerate(turns, start=1):
        first, rate = usage.time_to_first_token, usage.tokens_per_second
        table.add_row(
            str(number),
            f"{usage.prompt_tokens:,}",
            f"{usage.reused_tokens:,}",
            f"{usage.prefilled_tokens:,}",
            f"{usage.completion_tokens:,}",
            "-" if first is None else f"{first * 1000:.0f} ms",
            "-" if rate is None else f"{rate:.1f}",
        )
    return table
