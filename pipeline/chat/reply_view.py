"""A reply in Markdown, drawn while it comes: words wrap, and only lines that changed are written again."""

from __future__ import annotations

import time
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, JustifyMethod
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.segment import Segment, Segments

# HTML is not interpreted, so that tags in a reply stay visible.
PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
# The terminal's own colours, which are readable on its background whatever that is.
CODE_THEME = "ansi_dark"
# What a reply must not send to a terminal: control characters, escape sequences among them.
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
WAITING = "..."
# Of the time a reply takes, the part that drawing it may take.
DRAWING_SHARE = 0.1


class _LeftHeading(Heading):
    """A heading where the rest of the reply begins; rich puts it in the middle."""

    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}


class _Reply(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _LeftHeading,
    }


class ReplyView:
    """Draws one reply at the cursor, which is at the start of an empty line; until it begins, three dots.

    Lines that have left the screen at its top cannot be written again; they stay as they are.
    """

    def __init__(self, console: Console) -> None:
        """Draws the dots."""
        self._console = console
        self._width = console.width
        self._text = ""
        self._lines = [WAITING]
        self._next_draw = 0.0
        self._write(WAITING)

    def write(self, text: str) -> None:
        """Add a piece of the reply; what is drawn lags behind where drawing would slow the reply down."""
        self._text += text.translate(CONTROLS)
        started = time.perf_counter()
        if started >= self._next_draw:
            self._draw()
            ended = time.perf_counter()
            self._next_draw = ended + (ended - started) / DRAWING_SHARE

    def close(self) -> None:
        """Draw all of the reply, and leave the cursor at the start of the line after it."""
        self._draw()
        if self._lines:
            self._write("\n")

    def _draw(self) -> None:
        if self._console.width != self._width:  # the terminal wrapped the old lines itself: draw all anew
            self._write("\n")
            self._width, self._lines = self._console.width, []
        lines, old = render_markdown(self._text, self._console), self._lines
        if lines == old:
            return
        pairs = enumerate(zip(lines, old, strict=False))
        same = next((index for index, (new, drawn) in pairs if new != drawn), len(lines))
        # The last line drawn is always drawn again: the cursor stands in it.
        first = max(0, min(same, len(old) - 1, len(lines) - 1), len(old) - self._console.height)
        up = f"\x1b[{len(old) - 1 - first}A" if len(old) - 1 > first else ""
        erased = "\n".join(f"\r\x1b[2K{line}" for line in lines[first:])
        self._write(f"\r{up}{erased}\x1b[J")
        self._lines = lines

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


def render_markdown(text: str, console: Console) -> list[str]:
    """Lines of a Markdown text, styled for the console; each leaves its last column free.

    A terminal whose last column was just written is between two lines, and erasing would take that character.
    """
    markdown = _Reply("", code_theme=CODE_THEME, hyperlinks=False)
    markdown.parsed = PARSER.parse(text)
    for token in markdown.parsed:
        for child in token.children or ():
            if child.type == "softbreak":  # a model that ends a line means it: verses, addresses
                child.type = "hardbreak"
    options = console.options.update(width=max(1, console.width - 1))
    lines = [_without_padding(line) for line in console.render_lines(markdown, options, pad=False)]
    while lines and not lines[-1]:
        lines.pop()
    with console.capture() as captured:
        console.print(Segments(segment for line in lines for segment in (*line, Segment.line())), end="")
    return captured.get().split("\n")[:-1]


def _without_padding(line: list[Segment]) -> list[Segment]:
    """A line without the blanks at its end, which would be copied along with it."""
    kept = list(line)
    while kept and not kept[-1].text.rstrip():
        kept.pop()
    if kept:
        kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style)
    return kept
