"""What a session's file holds: whose it is, how the session stands, and what could not be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kvfold.plugins.contract.errors import SessionError
from kvfold.runtime.sessions.plain_file import open_plain
from kvfold.runtime.sessions.record_log import End, read_log
from kvfold.runtime.sessions.saved_session import SavedSession, apply_change

# The first record is never longer.
HEADING_BYTES = 16 * 1024
# As many as reach to the end of its checksum.
START_BYTES = 36


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

    def record(self) -> bytes:
        """The first record of a file, which is never the same twice."""
        return to_json({**asdict(self), "nonce": os.urandom(8).hex()})

    @classmethod
    def parse(cls, record: bytes) -> Heading:
        """Of a first record; raises ValueError or TypeError where it is none."""
        return cls(**{name: value for name, value in json.loads(record).items() if name != "nonce"})


@dataclass(frozen=True)
class Version:
    """Of a file: of two that are equal the whole records are the same.

    Attributes:
        size: bytes.
        start: with the first record's checksum, which no two files share.
    """

    size: int
    start: bytes

    @classmethod
    def of(cls, handle: int) -> Version:
        """Of an open file now."""
        return cls(os.fstat(handle).st_size, os.pread(handle, START_BYTES, 0))


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


def read_open_file(path: Path, handle: int) -> Reading:
    """What an open file holds now; raises SessionError where another version wrote it."""
    version = Version.of(handle)
    data = os.pread(handle, version.size, 0)
    with _named(path):
        payloads, end = read_log(data)
        heading, session = None, SavedSession()
        for payload in payloads:
            if heading is None:
                heading = Heading.parse(payload)
            else:
                session = apply_change(session, json.loads(payload))
    return Reading(heading, session, end, len(data) - end.at, version)


def read_session_file(path: Path) -> Reading:
    """What a file holds now, whoever holds it; raises SessionError and OSError as `open_plain`."""
    handle = open_plain(path, os.O_RDONLY)
    try:
        return read_open_file(path, handle)
    finally:
        os.close(handle)


def read_heading(path: Path) -> Heading | None:
    """Whose a file is; None where its first record is not whole. Raises as `read_session_file`."""
    handle = open_plain(path, os.O_RDONLY)
    try:
        with _named(path):
            payloads, _ = read_log(os.pread(handle, HEADING_BYTES, 0))
            return Heading.parse(payloads[0]) if payloads else None
    finally:
        os.close(handle)


def session_file_version(path: Path) -> Version:
    """Of the file now; raises as `read_session_file`."""
    handle = open_plain(path, os.O_RDONLY)
    try:
        return Version.of(handle)
    finally:
        os.close(handle)


def check_heading(path: Path, found: Heading | None, wanted: Heading) -> None:
    """Refuse a file that another session's, owner's or model's tokens are in."""
    if found is None or found == wanted:
        return
    if replace(found, model=wanted.model) != wanted:
        raise SessionError(f"{path} holds another session, or another kind, than its name says; delete it")
    raise SessionError(
        f"{path} was kept with another model's tokens; use the bundle it was made with, or begin a new one"
    )


def to_json(value: Any) -> bytes:
    """A value as records hold it."""
    return json.dumps(value, separators=(",", ":")).encode()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of reading say of which file."""
    try:
        yield
    except SessionError as error:
        raise SessionError(f"{path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SessionError(f"{path} holds what no kvfold wrote; delete it") from error
