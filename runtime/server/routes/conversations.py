"""A conversation over HTTP: tokens and pages of its last turn, kept for the next one."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.server.routes.shelf import busy
from kvfold.runtime.sessions.saved_session import SavedSession, SavedTurn
from kvfold.runtime.sessions.session_reading import Reading
from kvfold.runtime.text.chat import NOTHING, EncodedChat, add_reply
from kvfold.runtime.text.tokenizer import Tokenizer

Settle = Callable[[], Awaitable[None]]


async def nothing_to_settle() -> None:
    """Of what is kept nowhere."""


@dataclass(frozen=True)
class ConversationLimits:
    """What a tenant may keep.

    Attributes:
        max_sessions: sessions of a tenant; the one that is longest unused gives way.
        max_responses: stored responses of a tenant; the same.
        seconds: after which an unused session or response is forgotten.
        folder: where both lie on disk too; None for memory alone.
    """

    max_sessions: int = 256
    max_responses: int = 256
    seconds: float = 3600.0
    folder: Path | None = None


class Conversation:
    """A conversation up to a reply.

    Attributes:
        id: its name.
        created: seconds since the epoch.
        used: time.monotonic() of its last use.
        known: its tokens, those of replies as the model chose them.
        kept: pages that hold them, as the model's loop knows them; None where they were given up.
        turns: replies so far.
        rematched: replies that did not go on from the known tokens; the tree was asked instead.
        dropped: it was forgotten: nothing is kept in it any more.
        reading: what its file held when it was read or written last; None where it has none.
        saved: whether the file holds all of it.
    """

    def __init__(self, name: str) -> None:
        """One without a turn."""
        self.id = name
        self.created = time.time()
        self.used = time.monotonic()
        self.known = NOTHING
        self.kept: Any = None
        self.turns = 0
        self.rematched = 0
        self.dropped = False
        self.reading: Reading | None = None
        self.saved = False

    @property
    def facts(self) -> dict[str, Any]:
        """What its file says besides its tokens, as JSON has it."""
        return {"created": self.created, "turns": self.turns, "rematched": self.rematched}

    def as_saved(self) -> SavedSession:
        """What its file is to hold."""
        return SavedSession(self.facts, (SavedTurn(None, self.known),) if self.turns else ())

    def restore(self, reading: Reading, model: str) -> None:
        """Become what a file holds; tokens of another model than this one mean nothing, and are left."""
        facts, heading = reading.session.facts, reading.heading
        ours = heading is not None and heading.model == model
        self.known = reading.session.known if ours else NOTHING
        self.created = facts.get("created", self.created)
        self.turns = facts.get("turns", 0)
        self.rematched = facts.get("rematched", 0)
        self.reading, self.saved = reading, ours

    @property
    def busy(self) -> bool:
        """Whether it must not be forgotten now."""
        return False


class Session(Conversation):
    """A conversation that a client named; one turn of it runs at a time."""

    def __init__(self, name: str) -> None:
        """One without a turn."""
        super().__init__(name)
        self._running: Turn | None = None

    @property
    def busy(self) -> bool:
        """Whether a turn runs."""
        return self._running is not None

    def begin(self) -> Turn:
        """Begin a turn; raises HttpError 409 while another one runs."""
        self.check_free()
        self.used = time.monotonic()
        self._running = Turn(self, self, self._end)
        return self._running

    def check_free(self) -> None:
        """Refuse to touch it while a turn runs; raises HttpError 409."""
        if self.busy:
            raise busy(self.id)

    def view(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.id,
            "object": "kvfold.session",
            "created": int(self.created),
            "idle_seconds": round(time.monotonic() - self.used, 3),
            "tokens": len(self.known.token_ids),
            "turns": self.turns,
            "rematched": self.rematched,
            "busy": self.busy,
            "saved": self.saved,
        }

    def _end(self, turn: Turn) -> None:
        if self._running is turn:
            self._running = None
            self.used = time.monotonic()


class Turn:
    """A turn on its way; one that does not come to its end changes nothing.

    Attributes:
        finished: its reply has ended, and is remembered.
        taken: pages that it was submitted with; the model has them again once it computes for it.
        settle: brings what it came to to the disk; asked for when it finished, before the client hears of it.
    """

    def __init__(
        self, source: Conversation, target: Conversation | None, ended: Callable[[Turn], None] | None = None
    ) -> None:
        """A turn that goes on from `source`; what it comes to is kept in `target`, if anywhere."""
        self.finished = False
        self.taken: Any = None
        self.settle: Settle = nothing_to_settle
        self._source = source
        self._target = target
        self._ended = ended
        self._chat = NOTHING

    @property
    def known(self) -> EncodedChat:
        """Tokens that it may go on from."""
        return self._source.known

    @property
    def keeps(self) -> bool:
        """Whether the pages are kept after its end."""
        return self._target is not None

    @property
    def kept(self) -> Any:
        """Pages that it may go on from: whoever keeps none leaves them to another turn."""
        return self._source.kept if self.keeps else None

    def started(self, chat: EncodedChat) -> None:
        """It was submitted with these tokens, and with the kept pages: no other turn may have them."""
        self._chat = chat
        if self._target is not None:
            known = self._source.known.token_ids
            self._target.rematched += bool(known) and chat.token_ids[: len(known)] != known
            self.taken, self._source.kept = self._source.kept, None

    def finish(self, tokenizer: Tokenizer, completion: Completion, kept: Any) -> None:
        """Its reply has ended: remember its tokens and their pages, where anybody wants them."""
        target = self._target
        if target is None or target.dropped or completion.cancel_reason not in (None, "deadline"):
            return
        ids = self._chat.token_ids + list(completion.token_ids)
        target.known = add_reply(tokenizer, self._chat.text, ids, completion.token_ids)
        target.kept = self.taken if kept is None else kept  # it may have ended before its first step
        target.turns = self._source.turns + 1
        self.finished = True
        self.close()

    def close(self) -> None:
        """It is over, however it ended."""
        if self._ended is not None:
            self._ended(self)
