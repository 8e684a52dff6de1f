"""DirectoryFiles: objects as files, `<directory>/v1-<first byte of the key>/<name>`.

Nothing is kept open, so a directory may vanish and come back. No link is followed below the directory, and
every name is hex of our own making. A file is written under another name, flushed, then renamed: it is whole
or not there. The folder itself is not flushed: what a power cut takes is a miss.

The directory may be writable for a group of this process, as Kubernetes makes volumes with fsGroup: whoever
is in it can take files away, but only this user's files are read, and only this user and root can open those
to the group.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep, time

import numpy as np

from kvfold.plugins.contract.errors import TierError
from kvfold.runtime.memory.tiers.layout import FORMAT_VERSION
from kvfold.runtime.memory.tiers.object_file import ObjectName
from kvfold.runtime.memory.tiers.object_store import SHARDS, FoundObject, Listing, TakenPlaceError

SHARD = re.compile(rf"v{FORMAT_VERSION}-([0-9a-f]{{2}})")
HALF_WRITTEN = re.compile(r"[0-9a-f]{32}\.tmp")
# A write takes milliseconds; what is older was left by a killed process.
HALF_WRITTEN_SECONDS = 600.0
# Times of use are noted this coarsely.
TOUCH_SECONDS = 60.0
# A folder that changed this recently may change again within one tick of the file system's clock.
SETTLED_SECONDS = 2.0


class DirectoryFiles:
    """An `ObjectStore` that several processes of one user may share."""

    def __init__(self, path: Path) -> None:
        """Make the directory if it is missing, and check it.

        Raises:
            TierError: it is no directory, cannot be made, is another user's, or others may write to it.
        """
        if os.open not in os.supports_dir_fd:
            raise TierError("a tier's directory needs a POSIX system; leave the tier out here")
        self._path = path
        self._groups = {os.getegid(), *os.getgroups()}
        self._changed: dict[int, int] = {}
        self._ignored: dict[int, int] = {}
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            with self._directory():
                pass
        except OSError as error:
            raise TierError(
                f"tier directory {path}: {error.strerror}; give a directory that exists, or whose parent does"
            ) from error

    @property
    def ignored(self) -> int:
        """Entries that are none of this format's."""
        return sum(self._ignored.values())

    def write(self, name: ObjectName, parts: Sequence[memoryview | bytes]) -> int:
        """Write a file, unless one of its name and length is there."""
        size = sum(len(part) for part in parts)
        with self._folder(name, create=True) as folder:
            there = _look(folder, name.text)
            if there is None or there.st_size != size:
                _write_aside(folder, name.text, parts)
        return size

    def read(self, name: ObjectName, limit: int) -> np.ndarray | None:
        """Read a file, at most one byte beyond `limit`; its time of change says when it was last used."""
        with suppress(FileNotFoundError, TakenPlaceError), self._folder(name) as folder:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            if _look(folder, name.text) is None:
                raise FileNotFoundError
            with os.fdopen(os.open(name.text, flags, dir_fd=folder), "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                data = np.empty(min(status.st_size, limit + 1), np.uint8)
                length = 0
                while count := file.readinto(data[length:].data):
                    length += count
                if time() - status.st_mtime > TOUCH_SECONDS:
                    with suppress(OSError):  # a directory that can only be read
                        os.utime(file.fileno())
                return data[:length]
        self._changed[name.key[0]] = -1  # it was expected: look again
        return None

    def unlink(self, name: ObjectName) -> None:
        """Remove a file."""
        with suppress(FileNotFoundError, TakenPlaceError), self._folder(name) as folder:
            os.unlink(name.text, dir_fd=folder)

    def used(self, name: ObjectName) -> float:
        """Time of a file's last change."""
        with suppress(FileNotFoundError, TakenPlaceError), self._folder(name) as folder:
            if status := _look(folder, name.text):
                return status.st_mtime
        return 0.0

    def listings(self, known: Callable[[bytes], bool]) -> Iterator[Listing]:
        """Look at the folders whose time changed; remove what a killed process left half-written."""
        with self._directory() as top:
            here: dict[int, os.stat_result] = {}
            ignored = 0
            for entry in _entries(top):
                match, status = SHARD.fullmatch(entry), _status(top, entry)
                if match and status and stat.S_ISDIR(status.st_mode):
                    here[int(match[1], 16)] = status
                else:
                    ignored += 1
            for shard in set(range(SHARDS)) - here.keys():
                self._changed.pop(shard, None)
                self._ignored.pop(shard, None)
                yield Listing(shard, set(), [])
            for shard, status in here.items():
                if self._changed.get(shard) != status.st_mtime_ns:
                    settled = time() - status.st_mtime > SETTLED_SECONDS
                    with suppress(FileNotFoundError, TakenPlaceError), _shard(top, shard) as folder:
                        listing = self._list(folder, shard, known)
                        self._changed[shard] = status.st_mtime_ns if settled else -1
                        yield listing
            self._ignored[-1] = ignored

    def _list(self, folder: int, shard: int, known: Callable[[bytes], bool]) -> Listing:
        listing = Listing(shard, set(), [])
        ignored = 0
        for count, entry in enumerate(_entries(folder)):
            if count % 64 == 0:
                sleep(0)  # let a thread go on that waits for Python
            name = ObjectName.parse(entry)
            if name is not None and name.key[0] == shard:
                if known(name.key):
                    listing.keys.add(name.key)
                elif status := _look(folder, entry):
                    listing.keys.add(name.key)
                    listing.found.append(FoundObject(name, status.st_size, status.st_mtime))
                else:
                    ignored += 1
            elif not _removed(folder, entry):
                ignored += 1
        self._ignored[shard] = ignored
        return listing

    @contextmanager
    def _directory(self) -> Iterator[int]:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid():
                raise TierError(
                    f"tier directory {self._path} belongs to user {status.st_uid}, this process runs as "
                    f"{os.geteuid()}; give each user a directory"
                )
            loose = 0o022 if status.st_gid not in self._groups else 0o002
            if status.st_mode & loose:
                raise TierError(
                    f"tier directory {self._path} has mode {stat.S_IMODE(status.st_mode):o}: others may "
                    f"write to it; chmod 700 it"
                )
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _folder(self, name: ObjectName, *, create: bool = False) -> Iterator[int]:
        with self._directory() as top, _shard(top, name.key[0], create=create) as folder:
            yield folder


def _entries(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _status(folder: int, name: str) -> os.stat_result | None:
    """Of what is there now, of a link itself."""
    with suppress(FileNotFoundError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    return None


def _look(folder: int, name: str) -> os.stat_result | None:
    """A plain file of this user; None where it is anything else."""
    status = _status(folder, name)
    if status is not None and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
        return status
    return None


def _removed(folder: int, name: str) -> bool:
    """Whether this was half-written by a process that was killed; it is gone then."""
    status = _look(folder, name) if HALF_WRITTEN.fullmatch(name) else None
    if status is None or time() - status.st_mtime < HALF_WRITTEN_SECONDS:
        return False
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    return True


@contextmanager
def _shard(top: int, shard: int, *, create: bool = False) -> Iterator[int]:
    name = f"v{FORMAT_VERSION}-{shard:02x}"
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=top)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=top)
    except OSError as error:
        status = os.stat(name, dir_fd=top, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            raise
        raise TakenPlaceError(error.errno, error.strerror, name) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_aside(folder: int, name: str, parts: Sequence[memoryview | bytes]) -> None:
    aside = f"{os.urandom(16).hex()}.tmp"
    flush = getattr(os, "fdatasync", os.fsync)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(aside, flags, 0o600, dir_fd=folder)
    try:
        try:
            for part in parts:
                left = memoryview(part)
                while left:
                    left = left[os.write(descriptor, left) :]
            flush(descriptor)
        finally:
            os.close(descriptor)
        os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(aside, dir_fd=folder)
        raise
