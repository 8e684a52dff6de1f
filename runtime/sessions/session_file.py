"""One session's file: held by one process at a time, read to its last whole record, appended to."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kvfold.plugins.contract.errors import SessionBusyError, SessionError
from kvfold.runtime.sessions.record_log import START, End, add_records, read_log
from kvfold.runtime.sessions.saved_session import SavedSession, apply_change, change_between

# A file that is longer than this, and than so many times what it holds, is written anew with that alone.
REWRITE_BYTES, REWRITE_FACTOR = 2**20, 4
ASIDE = ".aside"
# The first record is never longer.
HEADING_BYTES = 16 * 1024
# As many as reach to the end of its checksum.
START_BYTES = 36
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True)
class Heading:
    """What a file's first record says.

    Attributes:
        name: of the session.
        owner: whose it is.
        kind: what its facts and turns are: `chat` of an LLM's session, or one of the server's.
        model: what its tokens mean something to (Tokenizer.fingerprint).
    """

    name: str
    owner: str
    kind: str
    model: str


@dataclass(frozen=True)
class Version:
    """Of a file: of two that are equal the whole records are the same.

    Attributes:
        size: bytes.
        start: with the first record's checksum, which no two files share (`Heading` is written with a nonce).
    """

    size: int
    start: bytes


@dataclass(frozen=True)
class Reading:
    """What a file held when it was read.

    Attributes:
        heading: of the session; None in a file without a whole record.
        session: up to the last whole record.
        end: of its whole records.
        lost: bytes behind that, which a kill in the middle of writing leaves, or a damaged disk.
        version: of the file.
    """

    heading: Heading | None
    session: SavedSession
    end: End
    lost: int
    version: Version

    def is_still(self, version: Version) -> bool:
        """Whether a file of this version holds the same; nobody knows of one that was read while it grew."""
        return self.lost == 0 and self.version == version


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
        known = last is not None and last.is_still(_version(handle))
        reading = last if last is not None and known else _read(path, handle)
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
        version = _version(self._handle)
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
        except OSError as error:
            self.failure = f"{self.path} cannot be written: {error.strerror}"
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
        return _is_at(self.path, self._handle)

    def _first_record(self) -> bytes:
        return _to_json({**asdict(self._heading), "nonce": os.urandom(8).hex()})

    def _append(self, session: SavedSession) -> None:
        new, change = self._end == START, change_between(self._session, session)
        if not new and change == change_between(self._session, self._session):
            return
        heading = [self._first_record()] if new else []
        data, end = add_records(self._end, [*heading, _to_json(change)])
        _write(self._handle, data, self._end.at)
        if new:
            _sync_folder(self.path.parent)
        self._end = end

    def _rewrite(self, session: SavedSession) -> None:
        """Put a file that holds this state alone in its place, and hold that one."""
        change = change_between(SavedSession(), session)
        data, end = add_records(START, [self._first_record(), _to_json(change)])
        aside = self.path.with_suffix(ASIDE)
        handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(handle, data, 0)
            aside.replace(self.path)
        except OSError:
            os.close(handle)
            aside.unlink()
            raise
        _sync_folder(self.path.parent)
        os.close(self._handle)
        self._handle, self._end = handle, end
        self._rewrite_at = max(REWRITE_BYTES, REWRITE_FACTOR * end.at)


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
        handle = _open(path, os.O_RDWR | (os.O_CREAT if create else 0))
        try:
            if _lock(path, handle):
                return SessionFile(path, handle, heading, last)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was deleted or replaced before it was ours: look again


def read_session_file(path: Path) -> Reading:
    """What a file holds now, whoever holds it; raises as `open_session_file`, but for who holds it."""
    handle = _open(path, os.O_RDONLY)
    try:
        return _read(path, handle)
    finally:
        os.close(handle)


def read_heading(path: Path) -> Heading | None:
    """Whose a file is; None where its first record is not whole. Raises as `read_session_file`."""
    handle = _open(path, os.O_RDONLY)
    try:
        with _named(path):
            payloads, _ = read_log(os.pread(handle, HEADING_BYTES, 0))
            return _heading(payloads[0]) if payloads else None
    finally:
        os.close(handle)


def delete_session_file(path: Path) -> None:
    """Remove a session's file; raises as `open_session_file`."""
    handle = _open(path, os.O_RDWR)
    try:
        if _lock(path, handle):
            path.unlink()
    finally:
        os.close(handle)


def session_file_version(path: Path) -> Version:
    """Of the file now; raises as `read_session_file`."""
    handle = _open(path, os.O_RDONLY)
    try:
        return _version(handle)
    finally:
        os.close(handle)


def _open(path: Path, flags: int) -> int:
    try:
        handle = os.open(path, flags | _FLAGS, 0o600)
    except OSError as error:
        if path.is_symlink():
            raise SessionError(f"{path} is a link; sessions are read from plain files: delete it") from error
        raise
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(handle)
        raise SessionError(f"{path} is no plain file of this user; delete it, or use another folder")
    return handle


def _lock(path: Path, handle: int) -> bool:
    """Take the lock; False where the path has come to name another file."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SessionBusyError(f"{path} is in use elsewhere; wait for its turn's end, or close it") from error
    return _is_at(path, handle)


def _is_at(path: Path, handle: int) -> bool:
    try:
        there, held = path.lstat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _read(path: Path, handle: int) -> Reading:
    version = _version(handle)
    data = os.pread(handle, version.size, 0)
    with _named(path):
        payloads, end = read_log(data)
        heading, session = None, SavedSession()
        for payload in payloads:
            if heading is None:
                heading = _heading(payload)
            else:
                session = apply_change(session, json.loads(payload))
    return Reading(heading, session, end, len(data) - end.at, version)


def _heading(payload: bytes) -> Heading:
    return Heading(**{name: value for name, value in json.loads(payload).items() if name != "nonce"})


def check_heading(path: Path, found: Heading | None, wanted: Heading) -> None:
    """Refuse a file that another session's, owner's or model's tokens are in."""
    if found is None or found == wanted:
        return
    if replace(found, model=wanted.model) != wanted:
        raise SessionError(f"{path} holds another session, or another kind, than its name says; delete it")
    raise SessionError(
        f"{path} was kept with another model's tokens; use the bundle it was made with, or begin a new one"
    )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of reading say of which file."""
    try:
        yield
    except SessionError as error:
        raise SessionError(f"{path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SessionError(f"{path} holds what no kvfold wrote; delete it") from error


def _write(handle: int, data: bytes, at: int) -> None:
    """Bytes from a place on, and nothing behind them, on the disk; a failed call leaves what was before."""
    try:
        if os.fstat(handle).st_size > at:
            os.ftruncate(handle, at)
        written = os.pwrite(handle, data, at)
        while written < len(data):  # the disk is nearly full: the next call says so
            written += os.pwrite(handle, data[written:], at + written)
        os.fdatasync(handle)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, at)
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _version(handle: int) -> Version:
    return Version(os.fstat(handle).st_size, os.pread(handle, START_BYTES, 0))


def _to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
