"""Table: what is shown in rows and columns, whether in a terminal, in Markdown or on a page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
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
        rows: as many cells each as there are columns; a first cell that is empty stands for the one above.
        note: what stands below it; empty for nothing.
        drawing: the column that draws what another one says: left out where there is no room for it.
        prose: whether the last column holds sentences, which stand left and wrap.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    drawing: str | None = None
    prose: bool = False

    @classmethod
    def of(
        cls, title: str, columns: Iterable[str], rows: Iterable[Iterable[str | Cell]], note: str = ""
    ) -> Self:
        """A table of cells, where a text stands for a cell without emphasis."""
        cells = (tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
        return cls(title, tuple(columns), tuple(cells), note)

    def drawn_by(self, column: str) -> Self:
        """The same, where `column` is its drawing."""
        return replace(self, drawing=column)

    def with_prose(self) -> Self:
        """The same, where the last column holds sentences."""
        return replace(self, prose=True)

    def without(self, column: str) -> Self:
        """The same without one column."""
        at = self.columns.index(column)
        rows = tuple(row[:at] + row[at + 1 :] for row in self.rows)
        return replace(self, columns=self.columns[:at] + self.columns[at + 1 :], rows=rows, drawing=None)
