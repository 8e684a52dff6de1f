"""What handlers share: conversations of all tenants, and the texts of the model's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kvfold.runtime.server.http import Request, decode_json
from kvfold.runtime.server.routes.conversations import ConversationLimits, Conversations, Session, Turn
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.tracked_reply import TrackedReply
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
        return reader(decode_json(body, dict[str, Any]), request.headers)

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
        self.sessions: Conversations[Session] = Conversations(
            limits.max_sessions, limits.seconds, self.discard
        )
        self.state = state
        self.running: dict[str, Running] = {}
        self._texts: TokenTexts | None = None

    def texts(self) -> TokenTexts:
        """Texts of the model's tokens."""
        if self._texts is None:
            self._texts = TokenTexts(self.state.llm.tokenizer)
        return self._texts

    def begin_turn(self, request: Request, session: str | None) -> Turn | None:
        """A turn of the caller's session, which begins with its first one; None without a session.

        Raises:
            HttpError: 409 the session is busy; 429 all others are, and there are too many.
        """
        if session is None:
            return None
        found = self.sessions.find(request.tenant, session)
        return (found or self.sessions.add(request.tenant, Session(session))).begin()

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
