"""One table, three renderers: the terminal, Markdown, a page."""

from __future__ import annotations

import io

from rich.console import Console

from kvfold.pipeline.show.html import load_template
from kvfold.pipeline.show.markdown import write_table
from kvfold.pipeline.show.table import Cell, Table
from kvfold.pipeline.show.terminal import draw_table

TABLE = Table.of(
    "Fruit, [half] of it",
    ("", "pieces", "price"),
    [["apple", "12", Cell("0.5", "good")], ["fig & plum", "-", Cell("9", "faint")]],
    note="Prices of <today>.",
)


def show(table: Table, width: int = 80, framed: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(draw_table(table, framed))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_texts_stand_for_cells_without_emphasis() -> None:
    assert TABLE.rows[0] == (Cell("apple"), Cell("12"), Cell("0.5", "good"))


def test_a_terminal_shows_names_left_figures_right_and_text_as_it_is() -> None:
    assert show(TABLE) == [
        "",
        "Fruit, [half] of it",
        "            pieces  price",
        "apple           12    0.5",
        "fig & plum       -      9",
        "Prices of <today>.",
    ]


def test_without_title_note_and_headers_a_terminal_shows_rows_alone() -> None:
    assert show(Table.of("", ("", ""), [["memory", "8 GiB"]])) == ["memory  8 GiB"]


def test_emphasis_is_colour_in_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(draw_table(TABLE))
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[1;32m  0.5\x1b[0m" in console.file.getvalue()


def test_in_a_narrow_terminal_cells_are_cut_and_framed_ones_wrap() -> None:
    long = Table.of("", ("", "meaning"), [["a", "one two three four"]])
    assert any("\u2026" in line for line in show(long, width=16))
    framed = " ".join(show(long, width=16, framed=True))
    assert "\u2026" not in framed and "three" in framed


def test_markdown_has_no_title_and_bold_emphasis() -> None:
    assert write_table(TABLE) == (
        "|  | pieces | price |\n|---|---:|---:|\n| apple | 12 | **0.5** |\n| fig & plum | - | 9 |\n\n"
        "Prices of <today>.\n"
    )


def test_a_page_escapes_cells_and_names_their_emphasis() -> None:
    draw = vars(load_template("table.html.j2").make_module())["draw"]
    page = str(draw(TABLE))
    assert '<td class="good">0.5</td>' in page and '<td class="faint">9</td>' in page
    assert "<td>fig &amp; plum</td>" in page
