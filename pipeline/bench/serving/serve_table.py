"""The result of a run against servers as a table."""

from __future__ import annotations

from collections.abc import Iterator

from kvfold.pipeline.bench.bench_table import format_value
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, ServeResult
from kvfold.pipeline.show.table import Cell, Table


def serve_table(result: ServeResult) -> Table:
    """A row a figure, marked by whether it keeps its demand."""
    machine = result.machine
    notes = [note for found in result.measured.values() for note in found.notes]
    how = (
        f"{', '.join(result.subjects)}; {machine.cpu}; load average at start {machine.load_average:.2f}; "
        f"{machine.started}; `{result.command}`. Medians over the rounds."
    )
    return Table.of("", ("", "measured", "demand"), _rows(result), "\n".join([*notes, how]))


def _rows(result: ServeResult) -> Iterator[tuple[Cell, ...]]:
    for scenario, found in result.measured.items():
        for figure in found.figures:
            title = Cell(f"{scenario}: {figure.title}, {figure.unit}")
            yield (title, _value(figure), Cell(_demand(figure.demand)))


def _value(figure: Figure) -> Cell:
    text = format_figure(figure.value)
    return Cell(text) if figure.met is None else Cell(text, "good" if figure.met else "bad")


def _demand(demand: Demand | None) -> str:
    return "" if demand is None else f"{demand.side} {format_figure(demand.limit)}"


def format_figure(value: float) -> str:
    """As the bench does; what is below nothing keeps its sign."""
    return f"-{format_value(-value)}" if value < 0 else format_value(value)
