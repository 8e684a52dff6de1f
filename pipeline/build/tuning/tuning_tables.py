"""What tuning found, as a table for the user."""

from __future__ import annotations

from kvfold.pipeline.show.table import Table
from kvfold.plugins.cuda.tuned_table import Choice, TunedTable


def tuning_table(table: TunedTable) -> Table:
    """A row for each choice, beside the rule's time."""
    return Table.of(
        f"{table.card}, SM {table.architecture}, {table.date}, Triton {table.triton}",
        ("kernel", "caches", "width", "warps", "stages", "sizes", "time", "rule's time"),
        (_row(choice) for choice in table.choices),
    )


def _row(choice: Choice) -> tuple[str, ...]:
    sizes = ", ".join(f"{name.lower()} {value}" for name, value in choice.constants.items())
    return (
        choice.kernel,
        "int8" if choice.int8_cache else "float16",
        str(choice.width),
        str(choice.num_warps),
        str(choice.num_stages),
        sizes,
        f"{choice.microseconds:,.1f} us",
        f"{choice.rule_microseconds:,.1f} us",
    )
