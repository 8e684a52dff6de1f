"""What the KV cache takes and gives: bytes of a sequence, and what each turn of a conversation reused."""

from __future__ import annotations

from collections.abc import Sequence

from kvfold.pipeline.show.table import Cell, Table
from kvfold.plugins.contract.byte_sizes import format_bytes
from kvfold.plugins.contract.kv_savings import KvBytes
from kvfold.runtime.metrics import Usage


def kv_bytes_table(rows: Sequence[KvBytes]) -> Table:
    """KV bytes of a new token (context length 1) and of whole contexts, before and after."""
    return Table.of(
        "KV cache of one sequence",
        ("context", "original (bf16)", "folded", "smaller"),
        (
            (
                "new token" if row.context_length == 1 else f"{row.context_length:,} tokens",
                format_bytes(row.original),
                format_bytes(row.folded),
                Cell(f"{row.reduction:.1f} x", "good" if row.reduction > 1 else "bad"),
            )
            for row in rows
        ),
    )


def turns_table(turns: Sequence[Usage]) -> Table:
    """What each turn of a conversation cost."""
    return Table.of(
        "Conversation",
        ("turn", "prompt", "reused", "prefilled", "generated", "first token", "tokens/s"),
        ((str(number), *_usage_cells(usage)) for number, usage in enumerate(turns, start=1)),
    )


def _usage_cells(usage: Usage) -> tuple[str, ...]:
    first, rate = usage.time_to_first_token, usage.tokens_per_second
    return (
        f"{usage.prompt_tokens:,}",
        f"{usage.reused_tokens:,}",
        f"{usage.prefilled_tokens:,}",
        f"{usage.completion_tokens:,}",
        "-" if first is None else f"{first * 1000:.0f} ms",
        "-" if rate is None else f"{rate:.1f}",
    )
