"""What tuning found, as tables for the user."""

from __future__ import annotations

from kvfold.pipeline.show.table import Table
from kvfold.plugins.cuda.tuned_table import TunedTable, Way


def tuning_table(table: TunedTable) -> Table:
    """A row for each choice, beside the rule's time."""
    return Table.of(
        f"{table.card}, SM {table.architecture}, {table.date}, Triton {table.triton}",
        ("kernel", "caches", "width", "warps", "stages", "sizes", "time", "rule's time"),
        (
            (*_row(choice), f"{choice.microseconds:,.1f} us", f"{choice.rule_microseconds:,.1f} us")
            for choice in table.choices
        ),
    )


def broken_ways_table(table: TunedTable) -> Table:
    """A row for each way that broke the GPU, and what came of it."""
    return Table.of(
        "broke the GPU",
        ("kernel", "caches", "width", "warps", "stages", "sizes", "error"),
        ((*_row(way), way.error) for way in table.broken),
    )


def _row(way: Way) -> tuple[str, ...]:
    sizes = ", ".join(f"{name.lower()} {value}" for name, value in way.constants.items())
    return (
        way.kernel,
        "int8" if way.int8_cache else "float16",
        str(way.width),
        str(way.num_warps),
        str(way.num_stages),
        sizes,
    )
