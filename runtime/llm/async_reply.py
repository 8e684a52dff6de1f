"""AsyncReply: a reply's pieces, read by an asyncio task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from kvfold.runtime.llm.generation import Completion, Reply, TextChunk
from kvfold.runtime.loop.commands import Cancel
from kvfold.runtime.loop.engine_loop import EngineLoop
from kvfold.runtime.loop.ticket import CancelReason
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.metrics import Usage


class AsyncReply:
    """A reply's pieces, as an async iterator; dropped before its end, it is cancelled.

    Where its reader is slow, all that is unread comes as one piece.
    """

    def __init__(self, reply: Reply, loop: EngineLoop) -> None:
        """Of a reply that this task's event loop will read."""
        self.ticket = reply.ticket
        self._reply = reply
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._over = False
        self._to_the_end = False
        self.event_loop = asyncio.get_running_loop()  # last: where there is none, it ends like one dropped

    @property
    def id(self) -> int:
        """Of the request."""
        return self.ticket.id

    @property
    def unread_characters(self) -> int:
        """Characters that wait to be read."""
        return self._reply.unread_characters

    @property
    def told(self) -> Sequence[TextChunk]:
        """Its pieces that were read before it began here."""
        return self._reply.told

    @property
    def kept(self) -> PagedSequence | None:
        """Of a reply that has ended: the pages that it kept for its conversation's next turn."""
        return self.ticket.request.sequence if self._reply.finished else None

    def usage(self) -> Usage:
        """What it cost so far."""
        return self.ticket.usage()

    @property
    def wants_news(self) -> bool:
        """Whether its reader wants to be woken by what there is."""
        return self._reply.finished or not self._to_the_end

    def __aiter__(self) -> AsyncIterator[TextChunk]:
        """Itself."""
        return self

    async def __anext__(self) -> TextChunk:
        """The next piece; the last one holds the completion.

        Raises:
            KvfoldError: the request, or the engine, failed.
        """
        while not self._over:
            self._over = self._reply.finished  # so that an error is raised once
            chunk = self._reply.take()
            if chunk is not None:
                self._over = chunk.completion is not None
                return chunk
            self._waiter = self.event_loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.cancel(keep=False)
                raise
        raise StopAsyncIteration

    async def completion(self) -> Completion:
        """The whole reply; errors as for the pieces."""
        self._to_the_end = True
        async for _ in self:
            pass
        return self._reply.completion()

    def cancel(self, reason: CancelReason = "client", keep: bool = True) -> None:
        """End it within a step; its last piece then says so. Nothing happens to one that has ended.

        Args:
            reason: why.
            keep: what was said counts, so that its pages are kept where the request asked for that.
        """
        if not self._reply.finished:
            self._loop.post(Cancel(self.ticket, reason, keep))

    def wake(self) -> None:
        """There is news; in the event loop's thread."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __del__(self) -> None:
        """Nobody will read it to its end, or take what it kept."""
        if not self._over:
            self._loop.post(Cancel(self.ticket))
