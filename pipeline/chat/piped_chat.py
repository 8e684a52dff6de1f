"""A conversation without a person at a terminal: a reply to each line that is piped in."""

from __future__ import annotations

from typing import TextIO

import click
from rich.console import Console

from kvfold.pipeline.chat.show_reply import describe_dropped, show_reply
from kvfold.runtime.llm.session import Session
from kvfold.runtime.sampling.params import SamplingParams


def answer_lines(session: Session, params: SamplingParams, lines: TextIO) -> None:
    """Write the reply to each line, and what it cost, without colours; empty lines are left out.

    Raises:
        KvfoldError: a line cannot be answered; the replies before it are written.
    """
    console = Console(force_terminal=False, no_color=True)
    for line in lines:
        if message := line.strip():
            chunks = session.stream(message, params)
            if (given_up := describe_dropped(session.dropped)) is not None:
                click.echo(given_up, err=True)
            show_reply(chunks, console)
    if session.unsaved is not None:
        click.echo(f"This chat is not kept as it stands: {session.unsaved}.", err=True)
