"""A Table in Markdown."""

from __future__ import annotations

from kvfold.pipeline.show.table import Cell, Table


def write_table(table: Table) -> str:
    """The table, then its note; emphasis is bold, and a title is left to the text around it."""
    rows = (table.columns, *(tuple(map(_mark, row)) for row in table.rows))
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    rule = "|---" + "|---:" * (len(table.columns) - 1) + "|"
    return "\n".join([head, rule, *body, *(["", table.note] if table.note else []), ""])


def _mark(cell: Cell) -> str:
    return cell.text if cell.emphasis in (None, "faint") else f"**{cell.text}**"
