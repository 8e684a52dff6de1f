"""Conversations of one kind on disk: whatever touches the disk runs in one thread, in order, off the loop."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from kvfold.plugins.contract.errors import RequestError, SessionBusyError, SessionError
from kvfold.runtime.server.http import HttpError
from kvfold.runtime.sessions.saved_session import SavedSession
from kvfold.runtime.sessions.session_file import SessionFile
from kvfold.runtime.sessions.session_reading import Reading
from kvfold.runtime.sessions.session_store import Entry, SessionStore

LOG = logging.getLogger("kvfold.server")
T = TypeVar("T")
Kind = Literal["session", "response"]
KINDS: tuple[Kind, ...] = ("session", "response")
Same = Literal["same"]
# Files that are told of in the log; further ones are only counted.
MOST_REFUSALS = 100


class Shelf:
    """The folder of one kind of conversations. Without a folder, or while the disk fails, it holds nothing.

    A disk that fails is told in the log once, and counted; conversations go on in memory.
    """

    def __init__(
        self,
        folder: Path | None,
        kind: Kind,
        model: Callable[[], str],
        counts: Counter[str],
        thread: ThreadPoolExecutor,
    ) -> None:
        """Nothing is read yet.

        Args:
            folder: of the server's state; None keeps none.
            kind: of conversations.
            model: the fingerprint of the model's tokenizer; raises HttpError 503 while it loads.
            counts: of what happened to files, by event; changed in the thread.
            thread: one.
        """
        self._folder = None if folder is None else state_folder(folder, kind)
        self._kind = kind
        self._model = model
        self._counts = counts
        self._thread = thread
        self._opened: SessionStore | None = None
        self._fails = False
        self._refusals: set[str] = set()

    async def entries(self, tenant: str | None = None) -> list[Entry]:
        """What is there of a tenant, or of all."""
        store = self._store()
        return [] if store is None else await self._run(lambda: store.entries(tenant))

    async def look(self, tenant: str, name: str, last: Reading | None) -> Reading | Same | None:
        """What is there of one; None where it is gone, `same` where that is what was read last.

        It is `same` too where nobody can know.
        """
        if (store := self._store()) is None:
            return "same"

        def read() -> Reading | Same | None:
            try:
                if last is not None and last.is_still(store.version(name, tenant)):
                    return "same"
                reading = self._told(store.read(name, tenant))
                return None if reading.heading is None else reading  # nothing of it is whole
            except FileNotFoundError:
                return None if store.folder.is_dir() else "same"
            except SessionError as error:
                self._refused(error)
            except OSError as error:
                self._failed(f"{store.folder} cannot be read: {error.strerror}")
            return "same"

        return await self._run(read)

    async def hold(
        self, tenant: str, name: str, last: Reading | None
    ) -> tuple[SessionFile, Reading | None] | None:
        """Hold one for a turn, and what it is now, if it was kept; None where it cannot be kept on disk.

        Raises:
            HttpError: 409 another server holds it.
        """
        if (store := self._store()) is None:
            return None

        return await self._run(lambda: self._open(store, tenant, name, last))

    async def save(self, file: SessionFile, session: SavedSession) -> tuple[Reading | None, bool]:
        """Bring a held file to this state and let go of it; what it then is, and whether it is this state."""
        return await self._run(lambda: self._write(file, session))

    async def put(self, tenant: str, name: str, session: SavedSession) -> Reading | None:
        """Keep a new one; None where that cannot be. Raises HttpError 409 where another server holds it."""
        if (store := self._store()) is None:
            return None

        def put() -> Reading | None:
            opened = self._open(store, tenant, name, None)
            return None if opened is None else self._write(opened[0], session)[0]

        return await self._run(put)

    def release(self, file: SessionFile) -> None:
        """Let go of a held file, after what was asked for before."""
        self._thread.submit(file.close)

    async def delete(self, tenant: str, name: str) -> None:
        """Remove one; nothing where there is none.

        Raises:
            HttpError: 409 another server holds it; 503 the disk fails.
        """
        if (store := self._store()) is None:
            return

        def delete() -> None:
            try:
                store.delete(name, tenant)
            except SessionBusyError as error:
                raise busy(name) from error
            except (OSError, SessionError) as error:
                self._failed(f"a file in {store.folder} cannot be removed")
                text = f"{name} is forgotten, and its file cannot be removed; remove it by hand"
                raise HttpError(503, text, code="not_removed") from error

        await self._run(delete)

    async def evict(self, tenant: str, name: str) -> bool:
        """Remove one to make room; False where another server holds it."""
        try:
            await self.delete(tenant, name)
        except HttpError as error:
            return error.status != 409  # a disk that fails keeps nobody out of memory
        return True

    def touch(self, tenant: str, name: str) -> None:
        """One is in use: its age begins anew."""
        if (store := self._store()) is not None:
            self._thread.submit(store.touch, name, tenant)

    async def forget(self, seconds: float) -> None:
        """Remove what was unused for so long."""
        if (store := self._store()) is not None:
            await self._run(lambda: store.forget(seconds))

    @property
    def model(self) -> str:
        """The fingerprint of the model's tokenizer; raises HttpError 503 while it loads."""
        return self._model()

    def _store(self) -> SessionStore | None:
        if self._opened is None and self._folder is not None:
            self._opened = SessionStore(self._folder, self._model(), self._kind)
        return self._opened

    def _open(
        self, store: SessionStore, tenant: str, name: str, last: Reading | None
    ) -> tuple[SessionFile, Reading | None] | None:
        """In the thread: hold one, begun anew where another model's tokens are in it."""
        try:
            if last is not None and last.heading is not None and last.heading.model != store.model:
                store.delete(name, tenant)
            file = store.open(name, tenant, last=last)
            reading = file.reading()
        except SessionBusyError as error:
            raise busy(name) from error
        except OSError as error:
            self._failed(f"{store.folder} cannot be written: {error.strerror}")
            return None
        except SessionError as error:
            self._refused(error)
            return None
        file.touch()
        if reading is not None and (last is None or reading.session is not last.session):
            self._told(reading)
        return file, reading

    def _write(self, file: SessionFile, session: SavedSession) -> tuple[Reading | None, bool]:
        """In the thread."""
        try:
            saved = file.save(session)
            if saved:
                self._saved()
            else:
                self._failed(str(file.failure))
            return file.reading(), saved
        except OSError as error:
            self._failed(f"{file.path} cannot be read: {error.strerror}")
            return None, False
        finally:
            file.close()

    async def _run(self, job: Callable[[], T]) -> T:
        """In the thread, to its end, whatever happens to who waits."""
        waited: Future[T] = self._thread.submit(job)
        return await asyncio.shield(asyncio.wrap_future(waited))

    def _told(self, reading: Reading) -> Reading:
        self._counts["read"] += 1
        if reading.lost:
            self._counts["cut"] += 1
            LOG.warning("a %s file ended in %d bytes that cannot be read", self._kind, reading.lost)
        return reading

    def _saved(self) -> None:
        self._counts["saved"] += 1
        if self._fails:
            self._fails = False
            LOG.info("%ss are saved again", self._kind)

    def _failed(self, why: str) -> None:
        self._counts["failed"] += 1
        if not self._fails:
            self._fails = True
            LOG.error("%ss go on in memory only: %s", self._kind, why)

    def _refused(self, error: SessionError) -> None:
        self._counts["refused"] += 1
        if str(error) not in self._refusals and len(self._refusals) < MOST_REFUSALS:
            self._refusals.add(str(error))
            LOG.warning("a %s goes on in memory only: %s", self._kind, error)


def check_state_folder(folder: Path | None) -> None:
    """Look at the folder before a server begins; a disk that fails is told in the log, and costs no more.

    Raises:
        RequestError: what lies there is no folder, or another user's.
    """
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"--state-dir {folder} is no folder; name one, or one that is to be made")
    for kind in KINDS:
        try:
            SessionStore(state_folder(folder, kind), "").check_folder()
        except SessionError as error:
            raise RequestError(f"--state-dir cannot be used: {error}") from error
        except OSError as error:
            LOG.error("%ss go on in memory only: %s cannot be written: %s", kind, folder, error.strerror)


def state_folder(folder: Path, kind: Kind) -> Path:
    """Where conversations of a kind lie."""
    return folder / f"{kind}s"


def busy(name: str) -> HttpError:
    """A conversation whose turn runs, here or at another server."""
    return HttpError(409, f"session {name} is busy with a turn; wait for its end", code="session_busy")
