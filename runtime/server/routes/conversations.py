"""Conversations over HTTP: tokens and pages of the last turn, kept for the next one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.server.http import HttpError
from kvfold.runtime.text.chat import NOTHING, EncodedChat, add_reply
from kvfold.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ConversationLimits:
    """What a tenant may keep.

    Attributes:
        max_sessions: sessions of a tenant; the one that is longest unused gives way.
        max_responses: stored responses of a tenant; the same.
        seconds: after which an unused session or response is forgotten.
    """

    max_sessions: int = 256
    max_responses: int = 256
    seconds: float = 3600.0


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
            message = f"session {self.id} is busy with a turn; wait for its end"
            raise HttpError(409, message, code="session_busy")

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
    """

    def __init__(
        self, source: Conversation, target: Conversation | None, ended: Callable[[Turn], None] | None = None
    ) -> None:
        """A turn that goes on from `source`; what it comes to is kept in `target`, if anywhere."""
        self.finished = False
        self.taken: Any = None
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
        target.kept = kept
        target.turns = self._source.turns + 1
        self.finished = True
        self.close()

    def close(self) -> None:
        """It is over, however it ended."""
        if self._ended is not None:
            self._ended(self)


Kept = TypeVar("Kept", bound=Conversation)


class Conversations(Generic[Kept]):
    """Conversations of all tenants, by name; those out of use are forgotten, and their pages given back."""

    def __init__(self, limit: int, seconds: float, discard: Callable[[Any], None]) -> None:
        """At most `limit` a tenant, each for `seconds` after its last use; `discard` gives pages back."""
        self._limit = limit
        self._seconds = seconds
        self._discard = discard
        self._tenants: dict[str, dict[str, Kept]] = {}
        self._looked = time.monotonic()

    def add(self, tenant: str, conversation: Kept) -> Kept:
        """Keep one; raises HttpError 409 where its name is taken, 429 where all others are busy."""
        self._forget()
        kept = self._tenants.setdefault(tenant, {})
        name = conversation.id
        if name in kept:
            raise HttpError(409, f"there is {name} already; give another name", code="name_taken")
        while len(kept) >= self._limit:
            idle = [one for one in kept.values() if not one.busy]
            if not idle:
                message = f"{len(kept)} are kept, and all are busy; wait, or delete one"
                raise HttpError(429, message, code="too_many_kept", headers={"retry-after": "1"})
            self.drop(tenant, min(idle, key=lambda one: one.used))
        return kept.setdefault(name, conversation)

    def find(self, tenant: str, name: str) -> Kept | None:
        """The one of that name; None where there is none."""
        self._forget()
        return self._tenants.get(tenant, {}).get(name)

    def drop(self, tenant: str, conversation: Kept) -> None:
        """Forget one."""
        del self._tenants[tenant][conversation.id]
        conversation.dropped = True
        self._discard(conversation.kept)
        conversation.kept = None

    def __iter__(self) -> Iterator[tuple[str, Kept]]:
        """All, with their tenants."""
        self._forget()
        return iter([(tenant, one) for tenant, kept in self._tenants.items() for one in kept.values()])

    def _forget(self) -> None:
        """Look at all, a hundred times within what they are kept for."""
        now = time.monotonic()
        if now - self._looked < self._seconds / 100:
            return
        self._looked = now
        border = now - self._seconds
        for tenant in list(self._tenants):
            for one in [one for one in self._tenants[tenant].values() if one.used < border and not one.busy]:
                self.drop(tenant, one)
            if not self._tenants[tenant]:
                del self._tenants[tenant]
