"""Progress in the terminal: what was skipped, why a stage runs again, and how long it took."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from kvfold.pipeline.show.progress import StageDisplay, format_seconds, stage_display
from tests.pipeline.fake_stages import fake_stages


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (12.3, "12 s"), (59.4, "59 s"), (200.4, "3 min 20 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_stage_that_resumes_counts_its_pace_from_where_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("kvfold.pipeline.show.progress.time.perf_counter", lambda: next(clock))
    progress = Progress(console=Console(file=io.StringIO()))
    report = StageDisplay(progress.console, progress).started(fake_stages([])[0], "not done yet", None)
    report(0.8)
    assert progress.tasks[0].fields["left"] == ""
    report(0.9, "loss 1.5")
    assert progress.tasks[0].fields["left"] == "10 s left"
    assert progress.tasks[0].fields["doing"] == "loss 1.5"


def test_a_line_per_stage() -> None:
    first, second, third, _ = fake_stages([])
    console = Console(file=io.StringIO(), width=100)
    with stage_display(console) as display:
        display.skipped(first)
        report = display.started(second, "not done yet", None)
        report(0.5)
        display.finished(second, 12.0)
        display.started(third, "second/b.txt is truncated", 3.0)
        display.finished(third, 0.5)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "= first       unchanged" in printed
    assert "+ second      12 s" in printed
    assert "again: second/b.txt is truncated" in printed
    assert "again: not done yet" not in printed
