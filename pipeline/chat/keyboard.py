"""The keyboard of a chat: what the user writes, what was written before, and Ctrl-C during a reply."""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from kvfold.pipeline.chat.kept_chats import state_folder

MARK = "> "
STYLE = Style.from_dict({"mark": "ansicyan bold"})


class ChatHistory(FileHistory):
    """What was said in earlier chats, for the arrow keys; a file that cannot be read or written is none."""

    def __init__(self, path: Path) -> None:
        """Over a file that only this user may read; it is made where it is not there yet."""
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        """Earlier messages, newest first."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Add a message."""
        with suppress(OSError):
            super().store_string(string)


class Keyboard:
    """Asks for one message after another; a pasted text is one, however many lines it has."""

    def __init__(self, commands: Iterable[str], history: Path | None) -> None:
        """`commands` are completed by the Tab key; `history` is what was said before, None for nothing."""
        self._session: PromptSession[str] = PromptSession(
            [("class:mark", MARK)],
            style=STYLE,
            history=InMemoryHistory() if history is None else ChatHistory(history),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            reserve_space_for_menu=0,
            key_bindings=_bindings(),
            multiline=True,
            prompt_continuation=" " * len(MARK),
            enable_open_in_editor=True,
        )

    def ask(self) -> str:
        """The next message.

        Raises:
            EOFError: Ctrl-D on an empty line.
            KeyboardInterrupt: Ctrl-C on an empty line; elsewhere it empties the line.
        """
        text = self._session.prompt()
        # Bytes that are no text came in as half characters, which nothing can encode.
        return text.encode("utf-8", errors="replace").decode("utf-8")


def _bindings() -> KeyBindings:
    bindings = KeyBindings()
    writing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=writing)
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=writing)
    @bindings.add("c-j", filter=writing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c", filter=writing & Condition(lambda: bool(get_app().current_buffer.text)))
    def _empty(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return bindings


def history_path() -> Path | None:
    """Where messages are kept for later chats; None where there is no home."""
    folder = state_folder()
    return None if folder is None else folder / "chat_history"


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """While this lasts, keys do not show by themselves, and Enter stays what it is until it is read.

    A terminal left to itself would write them into a reply, and turn Enter into Ctrl-J.
    """
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    inputs, outputs, control, local, *rest = before
    quiet = [inputs & ~termios.ICRNL, outputs, control, local & ~(termios.ECHO | termios.ICANON), *rest]
    try:
        termios.tcsetattr(keys, termios.TCSAFLUSH, quiet)
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSAFLUSH, before)


@contextmanager
def only_ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """While this lasts, Ctrl-C does `action`; what other keys were pressed is forgotten at its end."""
    before = signal.signal(signal.SIGINT, lambda number, frame: action())
    try:
        yield
    finally:
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        signal.signal(signal.SIGINT, before)
