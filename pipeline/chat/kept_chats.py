"""Chats that are kept, in the user's folder for state: a file each, by bundle, for `kvfold run --resume`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kvfold.plugins.contract.errors import RequestError, SessionBusyError, SessionError, TierError
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.memory.tiers.directory_files import DirectoryFiles
from kvfold.runtime.sessions.session_file import SessionFile
from kvfold.runtime.sessions.session_store import SessionStore

# After so long unused, or behind so many newer ones of the same bundle, a chat is deleted.
KEPT_SECONDS, KEPT_CHATS = 30 * 24 * 3600.0, 100
# Of the pages of all chats; those that were used last stay.
KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Keeping:
    """Which chat to hold, and whether to keep it.

    Attributes:
        resume: go on with the last one of the bundle.
        name: begin one of this name, or go on with it; None for a new one.
        private: keep nothing.
    """

    resume: bool = False
    name: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        """Refuse two at once; raises RequestError."""
        if self.resume + (self.name is not None) + self.private > 1:
            raise RequestError("--resume, --session and --private exclude each other; give one of them")

    def pages(self, by_hand: bool) -> dict[str, Any]:
        """Fields of RuntimeConfig that keep the chat's pages beside it; none where it or they are not kept.

        Without its pages a chat goes on all the same, from its tokens.
        """
        folder = state_folder()
        if not self.keeps(by_hand) or folder is None:
            return {}
        with suppress(OSError, TierError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            DirectoryFiles(folder / "kv")
            return {"kv_tier": folder / "kv", "kv_tier_bytes": KEPT_BYTES}
        return {}

    def keeps(self, by_hand: bool) -> bool:
        """Whether a chat is kept; what is piped in only where that is asked for."""
        return not self.private and (by_hand or self.resume or self.name is not None)

    def open(self, llm: LLM, bundle: Path, by_hand: bool) -> tuple[SessionFile | None, str | None]:
        """The file of the chat, and a line on what became of it.

        Args:
            llm: of the chat.
            bundle: the folder of its model: each has chats of its own.
            by_hand: somebody sits at a terminal; what is piped in is kept only where that is asked for.

        Raises:
            RequestError: there is no last chat, or no folder for it.
            SessionError: the one that was asked for cannot be opened; another terminal may hold it.
        """
        asked = self.resume or self.name is not None
        if not self.keeps(by_hand):
            return None, "Nothing of this chat is kept." if by_hand else None
        folder = state_folder()
        if folder is None:
            if asked:
                raise RequestError("no chat is kept without a home; set HOME or XDG_STATE_HOME")
            return None, "This chat is not kept: there is no home."
        owner = str(bundle.resolve())
        try:
            return self._open(llm.store(folder / "chats"), owner, bundle)
        except OSError as error:
            why = f"{folder} cannot be used: {error.strerror}"
            if asked:
                raise SessionError(f"{why}; make it a folder of yours, or set XDG_STATE_HOME") from error
            return None, f"This chat is not kept: {why}."

    def _open(self, store: SessionStore, owner: str, bundle: Path) -> tuple[SessionFile, str]:
        store.forget(KEPT_SECONDS, KEPT_CHATS)
        if self.name is None and not self.resume:
            return _begin(store, owner), "Kept for kvfold run --resume; --private keeps nothing."
        if self.name is not None:
            file, name = store.open(self.name, owner), self.name
        else:
            entries = store.entries(owner)
            if not entries:
                raise RequestError(f"no chat with {bundle} is kept yet; leave --resume out to begin one")
            file, name = store.open(entries[0].name, owner, create=False), entries[0].name
        return file, _describe(file, name)


def state_folder() -> Path | None:
    """XDG's folder for state, kvfold's part of it; None where there is no home."""
    folder = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not folder.is_absolute():
        try:
            folder = Path.home() / ".local" / "state"
        except RuntimeError:  # no user of this number, and no HOME
            return None
    return folder / "kvfold"


def _begin(store: SessionStore, owner: str) -> SessionFile:
    """A new chat, named by the time; two terminals may begin one in the same second."""
    now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    taken = {entry.name for entry in store.entries(owner)}
    for name in (now, *(f"{now} ({count})" for count in range(2, 1000))):
        if name not in taken:
            try:
                return store.open(name, owner)
            except SessionBusyError:
                continue
    raise SessionError("a thousand chats began in this second; try again")


def _describe(file: SessionFile, name: str) -> str:
    """`Going on with "2026-11-28 13:05:07": 3 turns, the last on "..."`."""
    turns = file.session.turns
    lost = f" {file.lost:,} bytes at its end could not be read and are left out." if file.lost else ""
    if not turns:
        return f'This chat is kept as "{name}".{lost}'
    words = " ".join(str(turns[-1].said[0]["content"]).split())
    count = f"{len(turns)} turn{'s' if len(turns) > 1 else ''}"
    return f'Going on with "{name}": {count}, the last on "{words[:40]}".{lost}'
