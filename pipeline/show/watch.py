"""Long work in front of a user: a bar in a terminal, and elsewhere a line now and then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from kvfold.plugins.contract.progress import Progress

LINE_SECONDS = 30.0  # between two lines of one piece of work, where there is no terminal
BAR_WIDTH = 100  # columns of a terminal that has room for the bar itself, and the time spent
ROW_WIDTH = 80  # columns of one that has room for each text beside the others
LEAST = 0.01  # before so much is done a pace says nothing
ALMOST = 0.99  # shown of what is all computed and not closed yet: something is still written


@dataclass(frozen=True)
class Work:
    """A piece of work as a user is told of it.

    Attributes:
        name: short, at the line's start.
        doing: what it does: "folding heads and layers".
        place: which of how many: "3 of 8"; empty where it stands alone.
        last_time: seconds that it took when it ran before; None where that is not known.
    """

    name: str
    doing: str
    place: str = ""
    last_time: float | None = None


class Pace:
    """How far a piece of work is, and how long it still takes: by its pace since it was first told of.

    Work that resumes begins beyond 0, so its pace counts from there. Before the first gain only what it took
    the last time is known.
    """

    def __init__(self, last_time: float | None) -> None:
        self._last_time = last_time
        self._first: tuple[float, float] | None = None
        self._start = self._now = monotonic()
        self.fraction: float | None = None

    def tell(self, fraction: float) -> None:
        """So much is done."""
        self._now = monotonic()
        self._first = self._first or (self._now, fraction)
        self.fraction = min(fraction, ALMOST)

    def describe(self) -> str:
        """`3 min 20 s left`; what it took the last time; or nothing."""
        left = self._left()
        if left is not None:
            return f"{format_seconds(left)} left"
        return f"last time {format_seconds(self._last_time)}" if self._last_time is not None else ""

    def _left(self) -> float | None:
        """Seconds, counted down since it was last told."""
        if self._first is None or self.fraction is None or self.fraction < self._first[1] + LEAST:
            return None
        seconds = (self._now - self._first[0]) / (self.fraction - self._first[1]) * (1 - self.fraction)
        return max(0.0, seconds - (monotonic() - self._now))

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return monotonic() - self._start


class Watch:
    """Shows work while it is done; `open_watch` makes it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = _make_bars(console)

    @contextmanager
    def work(self, work: Work) -> Iterator[Progress]:
        """Show a piece of work until the block ends; the block tells how far it is.

        A line says how long it took; there is none where the block fails.
        """
        pace = Pace(work.last_time)
        with self._bar(work, pace) if self.console.is_interactive else self._lines(work, pace) as progress:
            yield progress
        self.console.print(
            Text.assemble(("  + ", "green"), f"{work.name:<11} ", (format_seconds(pace.spent), "bold"))
        )

    @contextmanager
    def _bar(self, work: Work, pace: Pace) -> Iterator[Progress]:
        task = self.bars.add_task(work.name, total=None, doing=work.doing, place=work.place, pace=pace)

        def progress(fraction: float, note: str = "") -> None:
            pace.tell(fraction)
            self.bars.update(task, total=1.0, completed=pace.fraction, doing=note or work.doing)

        try:
            yield progress
        finally:
            self.bars.remove_task(task)

    @contextmanager
    def _lines(self, work: Work, pace: Pace) -> Iterator[Progress]:
        said = pace.spent
        place = f"{work.place}: " if work.place else ""
        self._say("  > ", work, f"{place}{work.doing}", pace.describe())

        def progress(fraction: float, note: str = "") -> None:
            nonlocal said
            pace.tell(fraction)
            if pace.spent - said >= LINE_SECONDS:
                said = pace.spent
                self._say("    ", work, f"{pace.fraction:.0%}", pace.describe(), note)

        yield progress

    def _say(self, mark: str, work: Work, *parts: str) -> None:
        line = Text(f"{mark}{work.name:<11} {', '.join(filter(None, parts))}")
        self.console.print(line, soft_wrap=True)


@contextmanager
def open_watch(console: Console) -> Iterator[Watch]:
    """A Watch that cleans up after itself, also on Ctrl-C."""
    watch = Watch(console)
    if not console.is_interactive:
        yield watch
        return
    with watch.bars:
        yield watch


class _LeftColumn(ProgressColumn):
    """The time left, counted down."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["pace"].describe(), style="dim")


def _make_bars(console: Console) -> Bars:
    """A line for each piece of work; texts wrap where the terminal is narrow, so that none is cut."""
    figures, words = Column(no_wrap=True), Column(overflow="fold")
    percent, left = _PercentColumn(figures), _LeftColumn(figures)
    doing = TextColumn("{task.fields[doing]}", style="dim", markup=False, table_column=words)
    name = TextColumn("{task.description:<11}", markup=False)
    place = TextColumn("{task.fields[place]}")
    columns: tuple[ProgressColumn, ...] = (name, place, percent, left, doing)
    if console.width >= BAR_WIDTH:
        columns = (name, place, BarColumn(bar_width=24), percent, TimeElapsedColumn(), left, doing)
    elif console.width < ROW_WIDTH:
        said = "{task.description} {task.fields[place]} {task.fields[doing]}"
        columns = (percent, left, TextColumn(said, markup=False, table_column=words))
    return Bars(SpinnerColumn(), *columns, console=console, transient=True)


class _PercentColumn(ProgressColumn):
    """The share done, once it is known."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:.0f} %")


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
