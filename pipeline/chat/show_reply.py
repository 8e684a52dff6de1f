"""A reply as it comes, then what it cost: in a terminal as Markdown, elsewhere as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from rich.console import Console

from kvfold.pipeline.chat.reply_view import ReplyView
from kvfold.runtime.llm.generation import Completion, TextChunk
from kvfold.runtime.metrics import Usage

if TYPE_CHECKING:
    from kvfold.plugins.contract.chat_template import Message


class View(Protocol):
    """Takes a reply's text, piece by piece."""

    def write(self, text: str) -> None:
        """Show a piece."""
        ...

    def close(self) -> None:
        """No more pieces come: end the line."""
        ...


class PlainView:
    """The reply's characters, unchanged: for a file, a pipe, or a terminal that moves no cursor."""

    def __init__(self, console: Console) -> None:
        """Nothing is written yet."""
        self._console = console

    def write(self, text: str) -> None:
        """Write a piece at once."""
        self._console.out(text, end="", highlight=False)

    def close(self) -> None:
        """End the line."""
        self.write("\n")


def can_draw(console: Console) -> bool:
    """Whether this is a terminal whose cursor moves."""
    return console.is_terminal and not console.is_dumb_terminal


def show_reply(chunks: Iterable[TextChunk], console: Console) -> Completion:
    """Show a reply as it comes, then a line on what it cost."""
    view: View = ReplyView(console) if can_draw(console) else PlainView(console)
    completion: Completion | None = None
    try:
        for chunk in chunks:
            view.write(chunk.text)
            completion = chunk.completion
    finally:
        view.close()
    assert completion is not None, "a stream ends with its completion"
    if completion.token_ids:
        costs = describe_usage(completion.usage)
        console.print(f"{costs}\n", style="dim", highlight=False, soft_wrap=not can_draw(console))
    return completion


def describe_dropped(messages: Sequence[Message]) -> str | None:
    """A line on the turns that a session gives up to make room; None where there are none."""
    asked = ", ".join(quote(message) for message in messages if message["role"] == "user")
    return f"The context is full, so these turns are given up: {asked}." if asked else None


def quote(message: Message) -> str:
    """The beginning of a message, in quotation marks, on one line."""
    words = " ".join(str(message["content"]).split())
    return f'"{words[:40].rstrip()}..."' if len(words) > 43 else f'"{words}"'


def describe_usage(usage: Usage) -> str:
    """`118 of 160 prompt tokens from the cache, 42 computed, first token after 61 ms, 97.3 tokens/s`."""
    parts = [
        f"{usage.reused_tokens:,} of {usage.prompt_tokens:,} prompt tokens from the cache",
        f"{usage.prefilled_tokens:,} computed",
    ]
    if usage.time_to_first_token is not None:
        parts.append(f"first token after {usage.time_to_first_token * 1000:.0f} ms")
    if usage.tokens_per_second is not None:
        parts.append(f"{usage.tokens_per_second:.1f} tokens/s")
    return ", ".join(parts)
