"""Conversations of all tenants, by name, in memory and on disk; those out of use are forgotten in both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.routes.conversations import Conversation
from kvfold.runtime.server.routes.shelf import Shelf
from kvfold.runtime.sessions.session_reading import Reading

Kept = TypeVar("Kept", bound=Conversation)


class Conversations(Generic[Kept]):
    """Conversations of one kind. Of what is on disk, only what was asked for is in memory too.

    Servers that share a folder see each other's: the file says how a conversation stands.
    """

    def __init__(
        self,
        limit: int,
        seconds: float,
        discard: Callable[[Any], None],
        shelf: Shelf,
        load: Callable[[str, Reading], Kept | None],
    ) -> None:
        """None yet.

        Args:
            limit: of a tenant, at most.
            seconds: after its last use, each is forgotten.
            discard: gives pages back.
            shelf: those on disk.
            load: makes one of what its file holds; None where that is not enough.
        """
        self._limit = limit
        self._seconds = seconds
        self._discard = discard
        self._shelf = shelf
        self._load = load
        self._tenants: dict[str, dict[str, Kept]] = {}
        self._looked = time.monotonic()

    async def add(self, tenant: str, conversation: Kept, again: bool = False) -> Kept:
        """Keep one.

        Args:
            tenant: whose it is.
            conversation: to be kept.
            again: it takes the place of one of its name that has ended: a relay asks anew for what was lost.

        Raises:
            HttpError: 409 its name is taken; 429 all others are busy, and there are too many.
        """
        await self._forget()
        name = conversation.id
        ages = await self._ages(tenant)
        if name not in ages and len(ages) >= self._limit:
            await self._make_room(tenant, ages)
        kept = self._tenants.setdefault(tenant, {})
        old = kept.get(name)
        replaced = again and (old is None or not old.busy)
        if not replaced and (name in ages or old is not None):
            raise HttpError(409, f"there is {name} already; give another name", code="name_taken")
        if old is not None:
            self._leave(tenant, old)
        kept[name] = conversation
        return conversation

    async def find(self, tenant: str, name: str) -> Kept | None:
        """The one of that name, as its file has it; None where there is none."""
        await self._forget()
        one = self._tenants.get(tenant, {}).get(name)
        if one is not None and one.busy:
            return one
        found = await self._shelf.look(tenant, name, None if one is None else one.reading)
        one = self._tenants.get(tenant, {}).get(name)
        if found == "same" or (one is not None and one.busy):
            return one
        if found is None:
            if one is not None and one.reading is not None:  # deleted by another server
                self._leave(tenant, one)
                return None
            return one
        one = one or self._load(name, found)
        if one is not None:
            self._tenants.setdefault(tenant, {})[name] = one
            one.restore(found, self._shelf.model)
        return one

    async def drop(self, tenant: str, conversation: Kept) -> None:
        """Forget one, its file too; raises HttpError 409 another server holds it, 503 the disk fails."""
        try:
            await self._shelf.delete(tenant, conversation.id)
        except HttpError as error:
            if error.status == 409:
                raise
            self._leave(tenant, conversation)
            raise
        self._leave(tenant, conversation)

    async def all(self, may_see: Callable[[str], bool]) -> list[tuple[str, Kept]]:
        """All of the tenants that one may see, with their tenants."""
        await self._forget()
        names = {(entry.owner, entry.name): None for entry in reversed(await self._shelf.entries())}
        names |= {(tenant, name): None for tenant, kept in self._tenants.items() for name in kept}
        seen = [(tenant, await self.find(tenant, name)) for tenant, name in names if may_see(tenant)]
        return [(tenant, one) for tenant, one in seen if one is not None]

    async def _ages(self, tenant: str) -> dict[str, float]:
        """Seconds since the last use of all of a tenant, here or at another server."""
        entries = await self._shelf.entries(tenant)
        now, clock = time.time(), time.monotonic()
        ages = {entry.name: now - entry.used for entry in entries}
        for name, one in self._tenants.get(tenant, {}).items():
            ages[name] = min(clock - one.used, ages.get(name, float("inf")))
        return ages

    async def _make_room(self, tenant: str, ages: dict[str, float]) -> None:
        """Forget those that are longest unused; raises HttpError 429 where all are busy."""
        excess = len(ages) - self._limit + 1
        for name in sorted(ages, key=lambda name: -ages[name]):
            one = self._tenants.get(tenant, {}).get(name)
            if excess and (one is None or not one.busy) and await self._shelf.evict(tenant, name):
                excess -= 1
                if one is not None and not one.busy:
                    self._leave(tenant, one)
        if excess:
            message = f"{len(ages)} are kept, and all are busy; wait, or delete one"
            raise HttpError(429, message, code="too_many_kept", headers={"retry-after": "1"})

    def _leave(self, tenant: str, conversation: Kept) -> None:
        """Forget what is in memory of one."""
        if self._tenants.get(tenant, {}).get(conversation.id) is conversation:
            del self._tenants[tenant][conversation.id]
        conversation.dropped = True
        self._discard(conversation.kept)
        conversation.kept = None

    async def _forget(self) -> None:
        """Look at all, a hundred times within what they are kept for."""
        now = time.monotonic()
        if now - self._looked < self._seconds / 100:
            return
        self._looked = now
        border = now - self._seconds
        for tenant in list(self._tenants):
            for one in [one for one in self._tenants[tenant].values() if one.used < border and not one.busy]:
                self._leave(tenant, one)
            if not self._tenants[tenant]:
                del self._tenants[tenant]
        await self._shelf.forget(self._seconds)
