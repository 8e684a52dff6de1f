"""A folder of sessions: a file each, under names that no session's id can choose."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvfold.plugins.contract.errors import SessionError
from kvfold.runtime.sessions.session_file import ASIDE, SessionFile, delete_session_file, open_session_file
from kvfold.runtime.sessions.session_reading import (
    Heading,
    Reading,
    Version,
    check_heading,
    read_heading,
    read_session_file,
    session_file_version,
)

SUFFIX = ".session"
MAX_NAME = 512


@dataclass(frozen=True)
class Entry:
    """A session that lies in the folder.

    Attributes:
        name: its id.
        owner: whose it is.
        used: seconds since the epoch when it was last used.
    """

    name: str
    owner: str
    used: float


class SessionStore:
    """Sessions of all owners in one folder, which several processes may share.

    Whoever opens a session holds it until it is closed: others are refused meanwhile, also in this process.
    The hold of a process that died is gone with it. Each owner has names of its own.

    Example:
        store = SessionStore("state", llm.generator.tokenizer.fingerprint)
        with llm.session("Answer briefly.", file=store.open("ada")) as session:
            session.send("My name is Ada.")
    """

    def __init__(self, folder: str | Path, model: str, kind: str = "chat") -> None:
        """Over a folder, which the first session makes where it is not there yet.

        Args:
            folder: what kvfold makes in it may be read by this user only.
            model: what its tokens mean something to (Tokenizer.fingerprint).
            kind: of its sessions; see Heading.
        """
        self.folder = Path(folder)
        self.model = model
        self.kind = kind
        self._names: dict[Path, Heading] = {}

    def open(
        self, name: str, owner: str = "", create: bool = True, last: Reading | None = None
    ) -> SessionFile:
        """Hold a session.

        Args:
            name: its id, any text of 1 to 512 characters.
            owner: whose it is; at most as long.
            create: begin it where it is not there.
            last: what its file held when it was read last, or left.

        Raises:
            SessionBusyError: another process, or another session of this one, holds it.
            SessionError: there is none, it is no file of this user's, or it is another version's or model's.
            OSError: the folder or the file cannot be made or opened.
        """
        if not 0 < len(name) <= MAX_NAME or len(owner) > MAX_NAME:
            raise SessionError(f"a session's name has 1 to {MAX_NAME} characters, not {len(name)}; rename it")
        if os.name != "posix":
            raise SessionError(f"sessions are kept on POSIX systems only, and this is {os.name}")
        path = self.path(name, owner)
        if create:
            self.check_folder()
            _make_folder(path.parent)
        try:
            return open_session_file(path, Heading(name, owner, self.kind, self.model), create, last)
        except FileNotFoundError as error:
            if create:
                raise
            raise SessionError(f"there is no session {name!r:.80} in {self.folder}") from error

    def read(self, name: str, owner: str = "") -> Reading:
        """What a session is now, whoever holds it, and whichever model's its tokens are.

        Raises:
            SessionError: as for `open`.
            OSError: it cannot be read, or is not there.
        """
        path, reading = self.path(name, owner), read_session_file(self.path(name, owner))
        model = self.model if reading.heading is None else reading.heading.model
        check_heading(path, reading.heading, Heading(name, owner, self.kind, model))
        return reading

    def version(self, name: str, owner: str = "") -> Version:
        """Of a session's file now; raises as `read`."""
        return session_file_version(self.path(name, owner))

    def touch(self, name: str, owner: str = "") -> None:
        """A session is in use: its age begins anew."""
        with suppress(OSError):
            os.utime(self.path(name, owner), follow_symlinks=False)

    def check_folder(self) -> None:
        """Make the folder where it is not there.

        Raises:
            SessionError: it is no folder, or another user's.
            OSError: it cannot be made.
        """
        _make_folder(self.folder)

    def delete(self, name: str, owner: str = "") -> None:
        """Remove a session; nothing where there is none.

        Raises:
            SessionBusyError: another process, or another session of this one, holds it.
            SessionError: it is no file of this user's.
            OSError: it cannot be removed.
        """
        with suppress(FileNotFoundError):
            delete_session_file(self.path(name, owner))

    def entries(self, owner: str | None = None) -> list[Entry]:
        """Sessions, of one owner or of all, the one used last in front; unreadable files are left out."""
        folders = self._folders() if owner is None else [self.path("", owner).parent]
        paths = [path for folder in folders for path in _files(folder, SUFFIX)]
        found = [
            Entry(heading.name, heading.owner, _used(path))
            for path in paths
            if (heading := self._heading(path)) is not None
        ]
        return sorted(found, key=lambda entry: -entry.used)

    def forget(self, seconds: float, at_most: int | None = None) -> int:
        """Delete what was unused for so long, and of each owner all but the last used; returns how many.

        What is held stays. Remains of a kill go too.
        """
        border, gone, there = time.time() - seconds, 0, set[Path]()
        for folder in self._folders():
            ages = sorted(((_used(path), path) for path in _files(folder, SUFFIX)), reverse=True)
            there.update(path for _, path in ages)
            for at, (used, path) in enumerate(ages):
                if used < border or (at_most is not None and at >= at_most):
                    with suppress(OSError, SessionError):
                        delete_session_file(path)
                        gone += 1
            for path in _files(folder, ASIDE):
                if _used(path) < border:
                    with suppress(OSError):
                        path.unlink()
        self._names = {path: heading for path, heading in self._names.items() if path in there}
        return gone

    def path(self, name: str, owner: str) -> Path:
        """The file of a session: both names as digests, so that no name leads anywhere else."""
        return self.folder / _digest(owner) / f"{_digest(name)}{SUFFIX}"

    def _heading(self, path: Path) -> Heading | None:
        """Whose a file is, read once: its path is made of that. None for files that are nobody's here."""
        if path not in self._names:
            with suppress(OSError, SessionError):
                heading = read_heading(path)
                if heading is not None and path == self.path(heading.name, heading.owner):
                    self._names[path] = heading
        found = self._names.get(path)
        return found if found is not None and found.kind == self.kind else None

    def _folders(self) -> Iterator[Path]:
        with suppress(OSError):
            yield from [path for path in self.folder.iterdir() if path.is_dir() and not path.is_symlink()]


def _files(folder: Path, suffix: str) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.suffix == suffix]
    except OSError:
        return []


def _used(path: Path) -> float:
    """When a file was last written or touched; now, where it has gone meanwhile."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return time.time()


def _make_folder(folder: Path) -> None:
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise SessionError(f"{folder} is no folder of this user; remove it, or name another one")


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
