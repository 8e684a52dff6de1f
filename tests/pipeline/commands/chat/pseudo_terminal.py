"""A command in a pseudo-terminal: keys go in, and pyte says what stands on the screen."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import pyte

ROWS = 100
# A machine that does much else takes a minute to start Python.
TIMEOUT = 300.0
CTRL_C, CTRL_D, CTRL_J, ENTER, UP = "\x03", "\x04", "\n", "\r", "\x1b[A"


def without_size(environment: Mapping[str, str]) -> dict[str, str]:
    """Without a size that whoever runs the tests has set: it would hide the terminal's own."""
    return {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}


class _Screen(pyte.Screen):
    """Answers what a program asks a terminal, such as where the cursor is."""

    answer: Callable[[str], None]

    def write_process_input(self, data: str) -> None:
        """Send an answer."""
        self.answer(data)


class PseudoTerminal:
    """One command in a terminal of its own; a context that ends it.

    Attributes:
        raw: everything that the command wrote, escape sequences included.
        folder: where it runs.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, columns: int = 80
    ) -> None:
        """Start it in a folder."""
        self._screen = _Screen(columns, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self.folder = folder
        self._asked = 0
        self._keys, theirs = os.openpty()
        self._screen.answer = lambda data: self.type(data)
        self.resize(columns)
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=without_size(environment) | {"TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        """The terminal itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the command if it still runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._keys)

    def resize(self, columns: int) -> None:
        """Give the terminal another width."""
        fcntl.ioctl(self._keys, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self._screen.resize(ROWS, columns)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._keys, keys.encode())

    def paste(self, text: str) -> None:
        """Paste a text, as terminals do for a program that asked for bracketed paste."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without blanks at the ends of lines and empty lines at its end."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines)

    @property
    def words(self) -> str:
        """The screen as one line, wherever its lines were wrapped."""
        return " ".join(self.text.split())

    def wait_for(self, what: str | Callable[[], bool]) -> None:
        """Read until a text stands on the screen, or a condition holds."""

        def holds() -> bool:
            return what in self.text if isinstance(what, str) else what()

        deadline = time.monotonic() + TIMEOUT
        while not holds():
            left = deadline - time.monotonic()
            assert left > 0, f"waited for {what!r}; the screen shows\n{self.text}"
            assert self._read(left) or holds(), f"it ended before {what!r}; the screen shows\n{self.text}"

    def wait_for_prompt(self) -> None:
        """Read until the chat asks for one more message; it asks terminals for bracketed paste each time."""
        asked = self._asked + 1
        self.wait_for(lambda: self.raw.count(b"\x1b[?2004h") >= asked and self.lines[-1] == ">")
        self._asked = asked

    def wait_for_end(self) -> int:
        """Read until the command ends; returns its exit code."""
        deadline = time.monotonic() + TIMEOUT
        while self._read(deadline - time.monotonic()):
            assert time.monotonic() < deadline, f"it does not end; the screen shows\n{self.text}"
        return self._process.wait(TIMEOUT)

    def _read(self, seconds: float) -> bool:
        """Take what the command wrote within some seconds; False where it closed the terminal."""
        ready, _, _ = select.select([self._keys], [], [], max(0.0, min(seconds, 0.1)))
        if not ready:
            return True
        try:
            data = os.read(self._keys, 65536)
        except OSError:  # Linux says so that nobody has the other end open any more
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)
