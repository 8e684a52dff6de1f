"""Long work in front of a user: how far it is, how long it still takes, in a terminal and in a log."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console

from kvfold.pipeline.show import watch as shown
from kvfold.pipeline.show.watch import LINE_SECONDS, Watch, Work, format_seconds, open_watch

Clock = Callable[[float], None]


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that moves when it is told so."""
    now = 1000.0

    def forward(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(shown, "monotonic", lambda: now)
    return forward


def log() -> Console:
    """Where output is no terminal."""
    return Console(file=io.StringIO(), width=80)


def terminal(width: int = 120) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def bars(watch: Watch) -> list[str]:
    """What the bars look like now."""
    width = watch.console.width
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(watch.bars.get_renderable())
    return printed(console)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (12.3, "12 s"), (59.4, "59 s"), (200.4, "3 min 20 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_log_has_a_line_at_the_start_now_and_then_and_at_the_end(pass_time: Clock) -> None:
    console = log()
    with open_watch(console) as watch, watch.work(Work("fold", "folding layers", "3 of 8")) as progress:
        for percent in range(100):
            pass_time(1)
            progress(percent / 100, f"layer {percent}")
    assert printed(console) == [
        "  > fold        3 of 8: folding layers",
        "    fold        29%, 1 min 11 s left, layer 29",
        "    fold        59%, 41 s left, layer 59",
        "    fold        89%, 11 s left, layer 89",
        "  + fold        1 min 40 s",
    ]


def test_a_log_says_what_it_took_the_last_time_and_nothing_of_what_fails() -> None:
    console = log()
    onnx = Work("onnx", "exporting the graph", "7 of 8", last_time=200.0)
    with pytest.raises(KeyError), open_watch(console) as watch, watch.work(onnx):
        raise KeyError
    assert printed(console) == ["  > onnx        7 of 8: exporting the graph, last time 3 min 20 s"]


def test_work_that_resumes_counts_its_pace_from_where_it_began(pass_time: Clock) -> None:
    console = log()
    with open_watch(console) as watch, watch.work(Work("heal", "training")) as progress:
        pass_time(LINE_SECONDS - 10)
        progress(0.8)
        pass_time(10)
        progress(0.9, "loss 1.5")
    assert "    heal        90%, 10 s left, loss 1.5" in printed(console)


def test_a_bar_shows_place_share_and_time_left_and_counts_down(pass_time: Clock) -> None:
    watch = Watch(terminal())
    with watch.work(Work("fold", "folding layers", "3 of 8", last_time=12.0)) as progress:
        (line,) = bars(watch)
        assert "fold" in line and "3 of 8" in line and "last time 12 s" in line and "folding layers" in line
        assert "%" not in line
        progress(0.0)
        pass_time(20)
        progress(0.5, "layer 15")
        assert "50 %" in bars(watch)[0] and "20 s left" in bars(watch)[0] and "layer 15" in bars(watch)[0]
        pass_time(5)
        assert "15 s left" in bars(watch)[0]
    assert bars(watch) == [""] or bars(watch) == []
    assert printed(watch.console) == ["  + fold        25 s"]


def test_a_bar_is_never_full_while_work_goes_on(pass_time: Clock) -> None:
    watch = Watch(terminal())
    with watch.work(Work("text", "writing")) as progress:
        progress(0.0)
        pass_time(10)
        progress(1.0)
        assert "99 %" in bars(watch)[0] and "100 %" not in bars(watch)[0]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_narrow_terminal_cuts_nothing(width: int, pass_time: Clock) -> None:
    watch = Watch(terminal(width))
    work = Work("methods/first_head-alone", "measuring perplexity and KL", "12 of 12")
    with watch.work(work) as progress:
        progress(0.0)
        pass_time(1234)
        progress(0.5)
        lines = bars(watch)
    assert max(map(cell_len, lines)) <= width
    assert not any("\u2026" in line for line in lines)
    assert any("50 %" in line and "20 min 34 s left" in line for line in lines)
    whole = "".join("".join(lines).split())
    for text in (work.name, work.place, work.doing):
        assert all(word in whole for word in text.split())
