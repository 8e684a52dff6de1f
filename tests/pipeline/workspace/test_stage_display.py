"""Stages in the terminal: what was skipped, why a stage runs again, and how long it took."""

from __future__ import annotations

import io

from rich.console import Console

from kvfold.pipeline.show.progress import make_bars
from kvfold.pipeline.workspace.stage_display import StageDisplay, stage_display
from tests.pipeline.fake_stages import fake_stages


def test_a_stage_that_runs_again_says_how_long_it_took_last_time() -> None:
    bars = make_bars(Console(file=io.StringIO()))
    progress = StageDisplay(bars.console, bars).started(fake_stages([])[0], "not done yet", 200.0)
    assert bars.tasks[0].fields["left"] == "about 3 min 20 s in all"
    progress(0.0, "loss 1.5")
    assert bars.tasks[0].fields["doing"] == "loss 1.5"


def test_a_line_per_stage() -> None:
    first, second, third, _ = fake_stages([])
    console = Console(file=io.StringIO(), width=100)
    with stage_display(console) as display:
        display.skipped(first)
        progress = display.started(second, "not done yet", None)
        progress(0.5)
        display.finished(second, 12.0)
        display.started(third, "second/b.txt is truncated", 3.0)
        display.finished(third, 0.5)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "= first       unchanged" in printed
    assert "+ second      12 s" in printed
    assert "again: second/b.txt is truncated" in printed
    assert "again: not done yet" not in printed
