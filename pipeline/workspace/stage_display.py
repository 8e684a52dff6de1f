"""What the stages do, in front of a user: a line each, with time spent, and how far the one is that runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.text import Text

from kvfold.pipeline.show.watch import Watch, Work, open_watch
from kvfold.pipeline.workspace.stage import Stage
from kvfold.plugins.contract.progress import Progress


class StageDisplay:
    """A Display on a rich console."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def skipped(self, stage: Stage) -> None:
        """One dim line."""
        self._watch.console.print(Text(f"  = {stage.name:<11} unchanged", style="dim"), soft_wrap=True)

    def running(
        self, stage: Stage, place: str, why: str, last_time: float | None
    ) -> AbstractContextManager[Progress]:
        """Say why it runs again, then show it as it goes."""
        if why != "not done yet":
            again = Text(f"  ~ {stage.name:<11} again: {why}", style="yellow")
            self._watch.console.print(again, soft_wrap=True)
        return self._watch.work(Work(stage.name, stage.doing, place, last_time))


@contextmanager
def stage_display(console: Console) -> Iterator[StageDisplay]:
    """A StageDisplay that cleans up after itself, also on Ctrl-C."""
    with open_watch(console) as watch:
        yield StageDisplay(watch)
