"""One session's file: held by one process at a time, read to its last whole record, appended to."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from kvfold.plugins.contract.errors import SessionError
from kvfold.runtime.sessions.plain_file import is_at, lock, open_plain, sync_folder, write_from
from kvfold.runtime.sessions.record_log import START, add_records
from kvfold.runtime.sessions.saved_session import SavedSession, change_between
from kvfold.runtime.sessions.session_reading import (
    Heading,
    Reading,
    Version,
    check_heading,
    read_open_file,
    to_json,
)

# A file that is longer than this, and than so many times what it holds, is written anew with that alone.
REWRITE_BYTES, REWRITE_FACTOR = 2**20, 4
ASIDE = ".aside"


class SessionFile:
    """A session's file that this process holds until `close`; nobody else opens it meanwhile.

    Attributes:
        path: of the file.
        lost: bytes that could not be read when it was opened; the session is shorter by their turns.
        failure: why the last `save` did not reach the disk; None where it did.
    """

    def __init__(self, path: Path, handle: int, heading: Heading, last: Reading | None = None) -> None:
        """Over an open file that is locked; `open_session_file` makes it.

        Raises:
            SessionError: the file is another version's, model's or owner's.
        """
        self._handle = -1
        self.path = path
        self.failure: str | None = None
        self._heading = heading
        known = last is not None and last.is_still(Version.of(handle))
        reading = last if last is not None and known else read_open_file(path, handle)
        check_heading(path, reading.heading, heading)
        self.lost = reading.lost
        self._session = reading.session
        self._end = reading.end
        self._rewrite_at = max(REWRITE_BYTES, REWRITE_FACTOR * reading.end.at)
        self._handle = handle  # last: whoever made this closes the handle where an error came first

    @property
    def session(self) -> SavedSession:
        """As it stands in the file."""
        return self._session

    def reading(self) -> Reading | None:
        """What the file holds now, if anything; whoever opens it again with that need not read it."""
        if self._end == START:
            return None
        version = Version.of(self._handle)
        return Reading(self._heading, self._session, self._end, version.size - self._end.at, version)

    def save(self, session: SavedSession) -> bool:
        """Bring the file to this state, on the disk; False where it cannot be written (`failure` says why).

        What a failed call did not write, the next one writes too.
        """
        try:
            if not self._in_place:
                raise FileNotFoundError(errno.ENOENT, "it was removed")
            cleared = bool(self._session.turns) and not session.turns  # nothing of it stays on the disk
            if cleared or self._end.at > self._rewrite_at:
                self._rewrite(session)
            else:
                self._append(session)
        except (OSError, SessionError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self.failure = f"{self.path} cannot be written: {why}"
            return False
        self.failure, self._session = None, session
        return True

    def touch(self) -> None:
        """It is in use: its age begins anew."""
        with suppress(OSError):
            os.utime(self._handle)

    def delete(self) -> None:
        """Remove the file; raises OSError where that cannot be."""
        if self._in_place:
            self.path.unlink()

    def close(self) -> None:
        """Let others have it; a file in which nothing was ever written goes."""
        if self._handle < 0:
            return
        if os.fstat(self._handle).st_size == 0:
            with suppress(OSError):
                self.delete()
        os.close(self._handle)
        self._handle = -1

    def __del__(self) -> None:
        """Whoever forgot to close it holds it no longer."""
        self.close()

    @property
    def _in_place(self) -> bool:
        """Whether the path still names the file that is held."""
        return is_at(self.path, self._handle)

    def _append(self, session: SavedSession) -> None:
        new, change = self._end == START, change_between(self._session, session)
        if not new and change == change_between(self._session, self._session):
            return
        heading = [self._heading.record()] if new else []
        data, end = add_records(self._end, [*heading, to_json(change)])
        write_from(self._handle, self._end.at, data)
        if new:
            sync_folder(self.path.parent)
        self._end = end

    def _rewrite(self, session: SavedSession) -> None:
        """Put a file that holds this state alone in its place, and hold that one."""
        change = change_between(SavedSession(), session)
        data, end = add_records(START, [self._heading.record(), to_json(change)])
        aside = self.path.with_suffix(ASIDE)
        handle = open_plain(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            lock(aside, handle)
            write_from(handle, 0, data)
            aside.replace(self.path)
        except (OSError, SessionError):
            os.close(handle)
            with suppress(OSError):
                aside.unlink()
            raise
        os.close(self._handle)
        self._handle, self._end, self._session = handle, end, session
        self._rewrite_at = max(REWRITE_BYTES, REWRITE_FACTOR * end.at)
        sync_folder(self.path.parent)


def open_session_file(
    path: Path, heading: Heading, create: bool = True, last: Reading | None = None
) -> SessionFile:
    """Hold a session's file.

    Args:
        path: of the file.
        heading: what it must have.
        create: make it where it is not there.
        last: what it held when it was read last, or left.

    Raises:
        SessionBusyError: another process, or another session of this one, holds it.
        SessionError: it is no file of this user's, or is another version's, model's or owner's.
        OSError: it cannot be opened, or is not there.
    """
    while True:
        handle = open_plain(path, os.O_RDWR | (os.O_CREAT if create else 0))
        try:
            if lock(path, handle):
                return SessionFile(path, handle, heading, last)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was deleted or replaced before it was ours: look again


def delete_session_file(path: Path) -> None:
    """Remove a session's file; raises as `open_session_file`."""
    handle = open_plain(path, os.O_RDWR)
    try:
        if lock(path, handle):
            path.unlink()
    finally:
        os.close(handle)
