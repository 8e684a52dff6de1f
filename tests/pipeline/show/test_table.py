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


def show(table: Table, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(draw_table(table))
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


def test_headers_wrap_before_rows_are_stacked() -> None:
    table = Table.of("", ("", "over the original's", "KL mean"), [["folded", "1.05", "0.0125"]])
    assert show(table, width=26) == [
        "          over the      KL",
        "        original's    mean",
        "folded        1.05  0.0125",
    ]


def test_a_row_without_room_is_a_block_of_lines() -> None:
    table = Table.of(
        "Perplexity",
        ("tokens", "", "perplexity", "over the original's", "windows"),
        [
            ["512", "folded", "17.00 (15.30, 18.70)", "1.050 (0.990, 1.110)", "16"],
            ["", "engine", Cell("18.00", "good"), "", ""],
        ],
        note="Intervals of 95 %.",
    )
    assert show(table, width=34) == [
        "",
        "Perplexity",
        "tokens 512",
        "  folded",
        "  perplexity: 17.00 (15.30, 18.70)",
        "  over the original's:",
        "    1.050 (0.990, 1.110)",
        "  windows: 16",
        "tokens 512",
        "  engine",
        "  perplexity: 18.00",
        "Intervals of 95 %.",
    ]


def test_a_drawing_goes_where_there_is_no_room_for_it() -> None:
    table = Table.of("", ("layer", "sees", "window"), [["0", "#" * 12, "64"]]).drawn_by("sees")
    assert show(table, width=40) == ["layer          sees  window", f"0      {'#' * 12}      64"]
    assert show(table, width=20) == ["layer  window", "0          64"]
    assert show(table, width=12) == ["layer 0", "  window: 64"]


def test_sentences_wrap_in_what_the_other_columns_leave_or_stand_below() -> None:
    text = "a sentence that says at some length what to do"
    table = Table.of("", ("", ""), [["compiler", text]]).with_prose()
    assert show(table, width=60) == [f"compiler  {text}"]
    assert show(table, width=46) == [
        "compiler  a sentence that says at some length",
        "          what to do",
    ]
    assert show(table, width=30) == ["compiler", "  a sentence that says at some", "  length what to do"]


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
