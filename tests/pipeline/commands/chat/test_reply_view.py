"""A reply drawn piece by piece ends as the same text drawn at once, and is not drawn over and over."""

from __future__ import annotations

import io
from itertools import pairwise

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kvfold.pipeline.chat import reply_view
from kvfold.pipeline.chat.reply_view import ReplyView
from tests.pipeline.commands.chat.scripted_chat import MARKDOWN


def make_console(columns: int, rows: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=columns, height=rows, color_system="256")


def drawn(pieces: list[str], columns: int, rows: int = 100) -> tuple[list[str], int]:
    """What stands on a screen after a reply in pieces, each drawn, and how much was written for it."""
    console = make_console(columns, rows)
    view = ReplyView(console)
    for piece in pieces:
        view.write(piece)
    view.close()
    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    screen = pyte.Screen(columns, rows)
    pyte.Stream(screen).feed(written.replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display], len(written)


@pytest.fixture(autouse=True)
def every_piece_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_view, "DRAWING_SHARE", float("inf"))


@pytest.mark.parametrize("columns", [40, 60, 80])
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, len(MARKDOWN) - 1), max_size=60))
def test_pieces_end_as_the_whole(columns: int, cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(MARKDOWN)]
    pieces = [MARKDOWN[start:end] for start, end in pairwise(borders)]
    assert drawn(pieces, columns)[0] == drawn([MARKDOWN], columns)[0]


def test_only_lines_that_change_are_written_again() -> None:
    lines = [f"line {number}\n\n" for number in range(200)]
    text = "".join(lines)
    _, whole = drawn([text], 80)
    _, written = drawn(lines, 80)
    assert written < 4 * whole, "each line about twice, not a hundred times"


def test_a_reply_longer_than_the_screen_shows_its_end() -> None:
    lines = [f"line {number}\n\n" for number in range(40)]
    screen, _ = drawn(lines, 80, rows=10)
    assert [line for line in screen if line] == [f"line {number}" for number in range(35, 40)]


def test_nothing_that_was_said_leaves_an_empty_line() -> None:
    screen, _ = drawn([], 80)
    assert set(screen) == {""}


def test_the_dots_give_way_to_the_reply() -> None:
    assert drawn(["Hi"], 80)[0][:2] == ["Hi", ""]
