"""Table: what is shown in rows and columns, whether in a terminal, in Markdown or on a page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

# What a reader should notice; each renderer has its own way to say it.
Emphasis = Literal["strong", "good", "bad", "faint"]


@dataclass(frozen=True)
class Cell:
    """One cell, its text as it is shown."""

    text: str
    emphasis: Emphasis | None = None


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first column names the row and stands left, figures stand right.

    Attributes:
        title: a line above it; empty for none.
        columns: their headers; where all are empty, none is shown.
        rows: as many cells each as there are columns.
        note: what stands below it; empty for nothing.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @classmethod
    def of(
        cls, title: str, columns: Iterable[str], rows: Iterable[Iterable[str | Cell]], note: str = ""
    ) -> Self:
        """A table of cells, where a text stands for a cell without emphasis."""
        cells = (tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
        return cls(title, tuple(columns), tuple(cells), note)
