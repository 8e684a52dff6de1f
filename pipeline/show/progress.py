"""Progress in the terminal: a bar for each thing in work, with time spent and time left."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


class Progress(Protocol):
    """Takes how far a piece of work is."""

    def __call__(self, fraction: float, note: str = "") -> None:
        """The fraction 0..1 done, and what the work has to say at present, such as a loss."""
        ...


def make_bars(console: Console) -> Bars:
    """Bars that show what is done, time spent and time left; as a context they clean up after themselves."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<11}"),
        TextColumn("[dim]{task.fields[doing]}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[left]}"),
    )
    return Bars(*columns, console=console, transient=True)


def open_bar(bars: Bars, name: str, doing: str) -> tuple[TaskID, Progress]:
    """A bar, and what tells it its fraction; the time left comes from the pace since it was first told."""
    first: tuple[float, float] | None = None
    task = bars.add_task(name, total=1.0, doing=doing, left="")

    def progress(fraction: float, note: str = "") -> None:
        nonlocal first
        now = time.perf_counter()
        first = first or (now, fraction)
        gained = fraction - first[1]
        left = f"{format_seconds((now - first[0]) / gained * (1 - fraction))} left" if gained > 0 else ""
        bars.update(task, completed=fraction, left=left, doing=note or doing)

    return task, progress


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
