"""A chat in a pseudo-terminal, with a scripted model or a real one, and a user's folders of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.pipeline.commands.chat.pseudo_terminal import PseudoTerminal
from tests.root import ROOT

# Starts a module of `python -m`, with arguments, in a terminal of so many columns.
Start = Callable[..., PseudoTerminal]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a user whose folders are in the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    return kept | {"HOME": str(tmp_path), "PYTHONPATH": paths}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start a module in a terminal; it is ended with the test."""
    with ExitStack() as running:

        def start(module: str, *arguments: str, columns: int = 80) -> PseudoTerminal:
            command = [sys.executable, "-m", module, *arguments]
            return running.enter_context(PseudoTerminal(command, environment, tmp_path, columns))

        yield start


@pytest.fixture
def scripted(start: Start) -> Callable[..., PseudoTerminal]:
    """Start a chat with the scripted model, and wait until it asks."""

    def scripted(*arguments: str, columns: int = 80) -> PseudoTerminal:
        terminal = start("tests.pipeline.commands.chat.scripted_chat", *arguments, columns=columns)
        terminal.wait_for_prompt()
        return terminal

    return scripted
