"""Plain files of this user: opened without following links, locked, written so that failing undoes it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from kvfold.plugins.contract.errors import SessionBusyError, SessionError


def open_plain(path: Path, flags: int) -> int:
    """Open a file, with `O_CREAT` for this user alone.

    Raises:
        SessionError: it is a link, no plain file, or another user's.
        OSError: it cannot be opened.
    """
    try:
        handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if path.is_symlink():
            raise SessionError(f"{path} is a link; sessions are read from plain files: delete it") from error
        raise
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(handle)
        raise SessionError(f"{path} is no plain file of this user; delete it, or use another folder")
    return handle


def lock(path: Path, handle: int) -> bool:
    """Take a file's lock; False where the path has come to name another file.

    Raises:
        SessionBusyError: another process, or another holder in this one, has it.
    """
    import fcntl  # POSIX alone has it, and whoever keeps no session needs none

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SessionBusyError(f"{path} is in use elsewhere; wait for its turn's end, or close it") from error
    return is_at(path, handle)


def is_at(path: Path, handle: int) -> bool:
    """Whether a path names an open file."""
    try:
        there, held = path.lstat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def write_from(handle: int, at: int, data: bytes) -> None:
    """Bytes from a place on, and nothing behind them, on the disk.

    Raises:
        OSError: that failed; the file ends at the place.
    """
    try:
        if os.fstat(handle).st_size > at:
            os.ftruncate(handle, at)
        written = os.pwrite(handle, data, at)
        while written < len(data):  # the disk is nearly full: the next call says so
            written += os.pwrite(handle, data[written:], at + written)
        getattr(os, "fdatasync", os.fsync)(handle)  # macOS has the latter alone
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, at)
        raise


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
