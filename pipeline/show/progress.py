"""Progress of the stages in the terminal: a line each, with time spent and time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from kvfold.pipeline.workspace.stage import Report, Stage


class StageDisplay:
    """A Display on a rich console."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._task = TaskID(0)

    def skipped(self, stage: Stage) -> None:
        """One dim line."""
        self._console.print(Text(f"  = {stage.name:<11} unchanged", style="dim"))

    def started(self, stage: Stage, why: str, expected_seconds: float | None) -> Report:
        """Open a bar; the time left comes from the fraction done, or else from the last run.

        A stage that resumes begins beyond 0: its pace counts from its first report.
        """
        self._task, report = open_bar(self._progress, stage.name, stage.doing)
        if expected_seconds is not None:
            self._progress.update(self._task, left=f"about {format_seconds(expected_seconds)} in all")
        if why != "not done yet":
            self._console.print(Text(f"  ~ {stage.name:<11} again: {why}", style="yellow"))
        return report

    def finished(self, stage: Stage, seconds: float) -> None:
        """Replace the bar by a line."""
        self._progress.remove_task(self._task)
        self._console.print(
            Text.assemble(("  + ", "green"), f"{stage.name:<11} ", (format_seconds(seconds), "bold"))
        )


def open_bar(progress: Progress, name: str, doing: str) -> tuple[TaskID, Report]:
    """A bar, and what tells it its fraction; the time left comes from the pace since it was first told."""
    first: tuple[float, float] | None = None
    task = progress.add_task(name, total=1.0, doing=doing, left="")

    def report(fraction: float, note: str = "") -> None:
        nonlocal first
        now = time.perf_counter()
        first = first or (now, fraction)
        gained = fraction - first[1]
        left = f"{format_seconds((now - first[0]) / gained * (1 - fraction))} left" if gained > 0 else ""
        progress.update(task, completed=fraction, left=left, doing=note or doing)

    return task, report


def make_bars(console: Console) -> Progress:
    """Bars that show what is done, time spent and time left; as a context they clean up after themselves."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<11}"),
        TextColumn("[dim]{task.fields[doing]}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[left]}"),
    )
    return Progress(*columns, console=console, transient=True)


@contextmanager
def stage_display(console: Console) -> Iterator[StageDisplay]:
    """A StageDisplay that cleans up after itself, also on Ctrl-C."""
    with make_bars(console) as progress:
        yield StageDisplay(console, progress)


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
