"""Conversations over HTTP: tokens and pages of the last turn, kept for the next one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kvfold.runtime.generation import Completion
from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.wire.reply_parts import new_id
from kvfold.runtime.text.chat import EncodedChat, add_reply
from kvfold.runtime.text.tokenizer import Tokenizer

NOTHING = EncodedChat("", [])


@dataclass(frozen=True)
class ConversationLimits:
    """What a tenant may keep.

    Attributes:
        max_sessions: sessions of a tenant; the one that is longest unused gives way.
        max_responses: stored responses of a tenant; the oldest gives way.
        seconds: after which an unused session or response is forgotten.
    """

    max_sessions: int = 256
    max_responses: int = 256
    seconds: float = 3600.0


class Conversation:
    """One conversation.

    Attributes:
        id: its name.
        created: seconds since the epoch.
        used: time.monotonic() of its last use.
        known: tokens up to the end of the last reply.
        kept: pages of the last turn, as the model's thread knows them; None where they were given up.
        turns: replies so far.
        rematched: turns that did not go on from the kept tokens and were looked up in the tree.
    """

    def __init__(self, name: str, known: EncodedChat = NOTHING) -> None:
        """One without a turn."""
        self.id = name
        self.created = time.time()
        self.used = time.monotonic()
        self.known = known
        self.kept: Any = None
        self.turns = 0
        self.rematched = 0
        self._running: Turn | None = None

    @property
    def busy(self) -> bool:
        """Whether a turn is running."""
        return self._running is not None

    def begin(self) -> Turn:
        """Begin a turn; raises HttpError 409 while another one runs."""
        if self._running is not None:
            raise HttpError(
                409, f"session {self.id} is busy with a turn; wait for its end", code="session_busy"
            )
        self.used = time.monotonic()
        self._running = Turn(self)
        return self._running

    def end(self, turn: Turn) -> None:
        """The turn is over; the next one may begin."""
        if self._running is turn:
            self._running = None
            self.used = time.monotonic()

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


class Turn:
    """A turn of a conversation; one that does not come to its end changes nothing.

    Attributes:
        known: the tokens that it may go on from.
        kept: the pages that hold them; None where there are none.
    """

    def __init__(self, conversation: Conversation) -> None:
        """A turn that was just begun."""
        self.known = conversation.known
        self.kept = conversation.kept
        self._conversation = conversation
        self._chat = NOTHING

    def started(self, chat: EncodedChat) -> None:
        """It was submitted with these tokens; the kept pages are the model's again."""
        known = self.known.token_ids
        if known and chat.token_ids[: len(known)] != known:
            self._conversation.rematched += 1
        self._chat = chat
        self._conversation.kept = None

    def finish(self, tokenizer: Tokenizer, completion: Completion, kept: Any) -> None:
        """Its reply has ended: remember its tokens, and the pages that hold them."""
        conversation = self._conversation
        ids = self._chat.token_ids + list(completion.token_ids)
        conversation.known = add_reply(tokenizer, self._chat.text, ids, completion.token_ids)
        conversation.kept = kept
        conversation.turns += 1
        self.close()

    def close(self) -> None:
        """It is over, however it ended."""
        self._conversation.end(self)


class Conversations:
    """Conversations of all tenants, by name; those out of use are forgotten."""

    def __init__(self, limit: int, seconds: float, discard: Callable[[Any], None]) -> None:
        """At most `limit` a tenant, each for `seconds` after its last use; `discard` gives pages back."""
        self._limit = limit
        self._seconds = seconds
        self._discard = discard
        self._tenants: dict[str, dict[str, Conversation]] = {}

    def create(self, tenant: str, name: str | None = None) -> Conversation:
        """A new one; raises HttpError 409 where the name is taken, 429 where all others are busy."""
        self.forget()
        kept = self._tenants.setdefault(tenant, {})
        name = new_id("sess_") if name is None else name
        if name in kept:
            raise HttpError(
                409, f"there is a session {name} already; give another name", code="session_exists"
            )
        while len(kept) >= self._limit:
            idle = [one for one in kept.values() if not one.busy]
            if not idle:
                raise HttpError(
                    429, f"all {len(kept)} sessions are busy; close one", code="too_many_sessions"
                )
            self._drop(tenant, min(idle, key=lambda one: one.used))
        return kept.setdefault(name, Conversation(name))

    def find(self, tenant: str, name: str) -> Conversation | None:
        """The conversation of that name; None where there is none."""
        self.forget()
        return self._tenants.get(tenant, {}).get(name)

    def delete(self, tenant: str, name: str) -> bool:
        """Forget one; False where there is none. Raises HttpError 409 while its turn runs."""
        found = self.find(tenant, name)
        if found is None:
            return False
        if found.busy:
            raise HttpError(409, f"session {name} is busy with a turn; wait for its end", code="session_busy")
        self._drop(tenant, found)
        return True

    def of(self, tenant: str) -> list[Conversation]:
        """All of a tenant's."""
        self.forget()
        return list(self._tenants.get(tenant, {}).values())

    def __iter__(self) -> Iterator[tuple[str, Conversation]]:
        """All, with their tenants."""
        self.forget()
        return iter([(tenant, one) for tenant, kept in self._tenants.items() for one in kept.values()])

    def forget(self) -> None:
        """Drop what was not used for too long: the oldest come first, so that few are looked at."""
        border = time.monotonic() - self._seconds
        for tenant, kept in list(self._tenants.items()):
            for one in [one for one in kept.values() if one.used < border and not one.busy]:
                self._drop(tenant, one)

    def _drop(self, tenant: str, conversation: Conversation) -> None:
        kept = self._tenants[tenant]
        del kept[conversation.id]
        if not kept:
            del self._tenants[tenant]
        if conversation.kept is not None:
            self._discard(conversation.kept)
            conversation.kept = None
