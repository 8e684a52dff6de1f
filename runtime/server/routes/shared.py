"""What handlers share: conversations of all tenants, and the texts of the model's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kvfold.runtime.server.http import HttpError, Request, decode_json
from kvfold.runtime.server.relayed import RELAY_FIELD, Relayed
from kvfold.runtime.server.routes.conversations import (
    ConversationLimits,
    Session,
    Settle,
    Turn,
)
from kvfold.runtime.server.routes.kept_conversations import Conversations
from kvfold.runtime.server.routes.shelf import Kind, Shelf
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.tracked_reply import TrackedReply
from kvfold.runtime.server.wire.fields.read_body import read_fields
from kvfold.runtime.server.wire.token_texts import TokenTexts

T = TypeVar("T")
# More than this takes longer to read than others should wait.
LONG_BODY_BYTES = 64 * 1024
Reader = Callable[[Mapping[str, Any], Mapping[str, str]], T]


async def read_ask(request: Request, reader: Reader[T]) -> T:
    """What a reader makes of the body's fields and the headers; raises HttpError, as both may."""
    request.check_json()
    body = await request.body()

    def read() -> T:
        fields = decode_json(body, dict[str, Any])
        if request.from_relay:
            given = fields.pop(RELAY_FIELD, None)
            request.relayed = None if given is None else read_fields(given, Relayed, RELAY_FIELD)
        return reader(fields, request.headers)

    return read() if len(body) <= LONG_BODY_BYTES else await asyncio.to_thread(read)


@dataclass(frozen=True)
class Running:
    """A reply that runs.

    Attributes:
        tenant: whose it is.
        stop: ends it within a step.
    """

    tenant: str
    stop: Callable[[], None]


class Shared:
    """One for a server.

    Attributes:
        state: of the server.
        sessions: named by clients, or by us for them.
        running: replies that run, by the id of their request in the model's loop.
    """

    def __init__(self, state: ServerState, limits: ConversationLimits) -> None:
        """Empty, also while the model loads."""
        self.state = state
        self._disk = ThreadPoolExecutor(1, "kvfold disk")
        self._shelf = self.shelf(limits.folder, "session")
        self.sessions: Conversations[Session] = Conversations(
            limits.max_sessions, limits.seconds, self.discard, self._shelf, lambda name, _: Session(name)
        )
        self.running: dict[str, Running] = {}
        self._texts: TokenTexts | None = None

    def texts(self) -> TokenTexts:
        """Texts of the model's tokens."""
        if self._texts is None:
            self._texts = TokenTexts(self.state.llm.tokenizer)
        return self._texts

    def shelf(self, folder: Path | None, kind: Kind) -> Shelf:
        """Where conversations of a kind lie on disk, in the server's folder, if it has one."""
        model, counts = lambda: self.state.llm.tokenizer.fingerprint, self.state.metrics.files
        return Shelf(folder, kind, model, counts, self._disk)

    async def begin_turn(self, request: Request, session: str | None) -> Turn | None:
        """A turn of the caller's session, which begins with its first one; None without a session.

        Raises:
            HttpError: 409 the session is busy, here or at a server that shares the folder; 429 all others
                are, and there are too many.
        """
        if session is None:
            return None
        found = await self.sessions.find(request.tenant, session) or await self._add(request.tenant, session)
        turn = found.begin()
        request.at_end(turn.close)
        turn.settle = await self._hold(request, found)
        return turn

    async def create_session(self, request: Request, name: str) -> Session:
        """A session without a turn; raises HttpError 409 where its name is taken, 429 as `begin_turn`."""
        made = await self.sessions.add(request.tenant, Session(name))
        await (await self._hold(request, made))()
        return made

    async def _add(self, tenant: str, name: str) -> Session:
        """A new session, or the one that another request began meanwhile; raises as `begin_turn`."""
        try:
            return await self.sessions.add(tenant, Session(name))
        except HttpError as error:
            if error.code == "name_taken" and (found := await self.sessions.find(tenant, name)) is not None:
                return found
            raise

    async def _hold(self, request: Request, session: Session) -> Settle:
        """Hold a session's file until the request ends; what writes to it how the session then stands."""
        held = await self._shelf.hold(request.tenant, session.id, session.reading)
        if held is None:

            async def tell() -> None:
                session.saved = False

            return tell
        file, reading = held
        request.at_end(lambda: self._shelf.release(file))
        last, session.reading = session.reading, reading
        if reading is not None and (last is None or reading.session is not last.session):
            session.restore(reading, self._shelf.model)

        async def save() -> None:
            session.reading, session.saved = await self._shelf.save(file, session.as_saved())

        return save

    def watch(self, request: Request, replies: Sequence[TrackedReply]) -> None:
        """Replies of a request can be stopped by others until it ends."""
        self.running |= {str(reply.id): Running(request.tenant, reply.stop) for reply in replies}

        def forget() -> None:
            for reply in replies:
                self.running.pop(str(reply.id), None)

        request.at_end(forget)

    def discard(self, kept: Any) -> None:
        """Give back pages that nobody goes on from, if there are any."""
        if kept is not None:
            self.state.llm.discard(kept)
