"""What the stages do, in the terminal: a line each, with time spent, and a bar for the one that runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID
from rich.text import Text

from kvfold.pipeline.show.progress import Progress, format_seconds, make_bars, open_bar
from kvfold.pipeline.workspace.stage import Stage


class StageDisplay:
    """A Display on a rich console."""

    def __init__(self, console: Console, bars: Bars) -> None:
        self._console = console
        self._bars = bars
        self._task = TaskID(0)

    def skipped(self, stage: Stage) -> None:
        """One dim line."""
        self._console.print(Text(f"  = {stage.name:<11} unchanged", style="dim"))

    def started(self, stage: Stage, why: str, expected_seconds: float | None) -> Progress:
        """Open a bar; the time left comes from the fraction done, or else from the last run.

        A stage that resumes begins beyond 0: its pace counts from its first report.
        """
        self._task, progress = open_bar(self._bars, stage.name, stage.doing)
        if expected_seconds is not None:
            self._bars.update(self._task, left=f"about {format_seconds(expected_seconds)} in all")
        if why != "not done yet":
            self._console.print(Text(f"  ~ {stage.name:<11} again: {why}", style="yellow"))
        return progress

    def finished(self, stage: Stage, seconds: float) -> None:
        """Replace the bar by a line."""
        self._bars.remove_task(self._task)
        self._console.print(
            Text.assemble(("  + ", "green"), f"{stage.name:<11} ", (format_seconds(seconds), "bold"))
        )


@contextmanager
def stage_display(console: Console) -> Iterator[StageDisplay]:
    """A StageDisplay that cleans up after itself, also on Ctrl-C."""
    with make_bars(console) as bars:
        yield StageDisplay(console, bars)
