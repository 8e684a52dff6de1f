"""A trace's hit rates as a table."""

from __future__ import annotations

from collections.abc import Iterator

from kvfold.pipeline.bench.trace.trace_results import BudgetResult, TraceResult
from kvfold.pipeline.bench.trace.trace_settings import Ends
from kvfold.pipeline.show.table import Cell, Table
from kvfold.plugins.contract.byte_sizes import format_bytes

COLUMNS = ("KV memory", "hit rate", "ideal LRU", "unfolded", "tail gone", "µs a step", "µs, with prompts")
ENDS: dict[Ends, str] = {
    "chat": "a prompt's end and its reply are what the conversation's next request reads",
    "whole": "prompts cut to whole blocks, no replies",
    "recorded": "prompts end in blocks of their own, no replies",
}


def trace_table(result: TraceResult) -> Table:
    """A row a budget."""
    return Table.of("", COLUMNS, (_row(budget) for budget in result.budgets), "\n".join(_notes(result)))


def _row(budget: BudgetResult) -> tuple[Cell, ...]:
    rates = (budget.ideal, budget.unfolded, budget.too_short)
    times = (budget.step_microseconds, budget.reading_microseconds)
    return (
        Cell(format_bytes(budget.bytes)),
        Cell(_percent(budget.hit_rate), "strong"),
        *(Cell(_percent(rate)) for rate in rates),
        *(Cell(f"{time:,.0f}") for time in times),
    )


def _notes(result: TraceResult) -> Iterator[str]:
    yield (
        f"Shares of {result.prompt_tokens:,} prompt tokens. Endless memory would find "
        f"{_percent(result.endless)}; {_percent(result.endless_ideal)} where the ideal LRU keeps ends. "
        "Unfolded: an ideal LRU of the same bytes, in bf16, where a token takes "
        f"{format_bytes(result.unfolded_token_bytes)}. Tail gone: matched, but computed again. Times are "
        "CPU of scheduler and memory; nothing is sampled."
    )
    for budget in result.budgets:
        if budget.refused or budget.preemptions:
            yield (
                f"{format_bytes(budget.bytes)}: {budget.refused:,} requests too long for it, "
                f"{budget.preemptions:,} preemptions, {_percent(budget.recomputed)} computed twice."
            )
    machine = result.machine
    yield (
        f"{result.trace}: {result.requests:,} requests, {result.continued:,} go on in a later one; blocks of "
        f"{result.block_tokens} tokens; {ENDS[result.ends]}; {result.at_once} at once, "
        f"{result.step_tokens:,} tokens a step, context {result.context:,}. {result.plan}; {machine.cpu}; "
        f"load average at start {machine.load_average:.2f}; {machine.started}; `{result.command}`."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
