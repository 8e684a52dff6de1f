"""Progress bars in the terminal: how long something took, and how long it will still take."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kvfold.pipeline.show.progress import format_seconds, make_bars, open_bar


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (12.3, "12 s"), (59.4, "59 s"), (200.4, "3 min 20 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_work_that_resumes_counts_its_pace_from_where_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("kvfold.pipeline.show.progress.time.perf_counter", lambda: next(clock))
    bars = make_bars(Console(file=io.StringIO()))
    _, progress = open_bar(bars, "heal", "training")
    progress(0.8)
    assert bars.tasks[0].fields["left"] == ""
    progress(0.9, "loss 1.5")
    assert bars.tasks[0].fields["left"] == "10 s left"
    assert bars.tasks[0].fields["doing"] == "loss 1.5"
