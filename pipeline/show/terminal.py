"""A Table as a terminal shows it."""

from __future__ import annotations

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from kvfold.pipeline.show.table import Emphasis, Table

STYLES: dict[Emphasis | None, str] = {
    None: "",
    "strong": "bold",
    "good": "bold green",
    "bad": "bold red",
    "faint": "dim",
}


def draw_table(table: Table, framed: bool = False) -> RichTable:
    """Cells in one line each; framed ones wrap where the terminal is too narrow."""
    drawn = RichTable(
        title=Text(f"\n{table.title}", style="bold") if table.title else None,
        title_justify="left",
        caption=Text(table.note, style="table.caption") if table.note else None,
        caption_justify="left",
        box=box.HEAVY_HEAD if framed else None,
        pad_edge=framed,
        show_header=any(table.columns),
    )
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if index else "left", no_wrap=not framed)
    for row in table.rows:
        drawn.add_row(*(Text(cell.text, style=STYLES[cell.emphasis]) for cell in row))
    return drawn
