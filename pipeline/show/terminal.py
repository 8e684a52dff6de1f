"""A Table as a terminal shows it: in columns where they have room, else a row as a block of lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from kvfold.pipeline.show.table import Cell, Emphasis, Table

STYLES: dict[Emphasis | None, str] = {
    None: "",
    "strong": "bold",
    "good": "bold green",
    "bad": "bold red",
    "faint": "dim",
}
GAP = 2  # between columns
LEAST_PROSE = 36  # characters that a column of sentences needs to be read with ease


@dataclass(frozen=True)
class DrawnTable:
    """A renderable that loses nothing to a narrow terminal: no cell is cut, and none that has room broken."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Title, rows and note, no line wider than the console."""
        table, width = self.table, options.max_width
        if table.title:
            yield Text(f"\n{table.title}", style="bold")
        yield from _draw_rows(table, width)
        if table.note:
            yield Text(table.note, style="table.caption")


def draw_table(table: Table) -> DrawnTable:
    """What a rich console prints; it learns the terminal's width when it is printed."""
    return DrawnTable(table)


def _draw_rows(table: Table, width: int) -> Iterator[RenderableType]:
    """The whole table; with headers that wrap; without its drawing; else row by row."""
    smaller = [table.without(table.drawing)] if table.drawing else []
    for each in (table, *smaller):
        for wrap_headers in (False, True):
            widths = _column_widths(each, wrap_headers, width)
            if sum(widths) + GAP * (len(widths) - 1) <= width:
                yield _draw_columns(each, widths)
                return
    yield from _draw_blocks(smaller[0] if smaller else table, width)


def _column_widths(table: Table, wrap_headers: bool, width: int) -> list[int]:
    """What each column needs; sentences take what the others leave."""
    widths = [
        max(
            [
                *map(cell_len, _header_lines(header, wrap_headers)),
                *(_text_width(row[index]) for row in table.rows),
            ]
        )
        for index, header in enumerate(table.columns)
    ]
    if table.prose:
        left = width - sum(widths[:-1]) - GAP * (len(widths) - 1)
        widths[-1] = min(widths[-1], max(left, LEAST_PROSE))
    return widths


def _header_lines(header: str, wrap: bool) -> list[str]:
    return (header.split() if wrap else header.splitlines()) or [""]


def _text_width(cell: Cell) -> int:
    return max(map(cell_len, cell.text.splitlines()), default=0)


def _draw_columns(table: Table, widths: Sequence[int]) -> RichTable:
    drawn = RichTable(box=None, pad_edge=False, show_header=any(table.columns))
    for index, (column, width) in enumerate(zip(table.columns, widths, strict=True)):
        stands_left = index == 0 or (table.prose and index == len(widths) - 1)
        drawn.add_column(column, justify="left" if stands_left else "right", width=width)
    for row in table.rows:
        drawn.add_row(*(Text(cell.text, style=STYLES[cell.emphasis]) for cell in row))
    return drawn


def _draw_blocks(table: Table, width: int) -> Iterator[RenderableType]:
    """A row's name, then a line `column: cell` for each of its other cells that holds something."""
    name = Cell("")
    for first, *rest in table.rows:
        name = first if first.text else name
        label = f"{table.columns[0]} " if table.columns[0] else ""
        yield Text(f"{label}{name.text}", style=STYLES[name.emphasis or "strong"])
        for column, cell in zip(table.columns[1:], rest, strict=True):
            if cell.text:
                yield from _draw_item(" ".join(column.split()), cell, width)


def _draw_item(column: str, cell: Cell, width: int) -> Iterator[RenderableType]:
    """In one line where it fits, else the cell below its column's name."""
    label, text = f"{column}: " if column else "", Text(cell.text, style=STYLES[cell.emphasis])
    if label and GAP + cell_len(label) + _text_width(cell) > width:
        yield Padding(Text(label.rstrip()), (0, 0, 0, GAP))
        yield Padding(text, (0, 0, 0, 2 * GAP))
    else:
        yield Padding(Text.assemble(label, text), (0, 0, 0, GAP))
