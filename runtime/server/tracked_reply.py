"""A reply as the server sees it: its pieces, and what they tell of its speed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

from kvfold.runtime.server.served_llm import ServedReply


class ReplyObserver(Protocol):
    """Told of every reply; called on the loop of asyncio."""

    def first_token(self, seconds: float) -> None:
        """Since the request's first byte."""
        ...

    def tokens(self, seconds: float, count: int) -> None:
        """So many tokens came, each so many seconds after the one before it."""
        ...

    def ended(self, seconds: float, completion: Any) -> None:
        """Since the request's first byte; a Completion, or None where an error ended it."""
        ...


class TrackedReply:
    """An AsyncReply whose pieces are counted while they are read.

    Attributes:
        completion: of the finished reply; None before.
    """

    def __init__(self, reply: ServedReply, arrived: float, observer: ReplyObserver) -> None:
        """A reply that was just submitted, to a request whose first byte came at `arrived`."""
        self.completion: Any = None
        self._reply = reply
        self._arrived = arrived
        self._observer = observer
        self._last: float | None = None
        self._ended = False

    @property
    def id(self) -> int:
        """Of the request in the loop."""
        return self._reply.id

    @property
    def buffered_bytes(self) -> int:
        """UTF-8 bytes of text that nobody took yet."""
        return self._reply.buffered_bytes

    def __aiter__(self) -> AsyncIterator[Any]:
        """Its pieces."""
        return self

    async def __anext__(self) -> Any:
        """The next TextChunk; the last one has a completion."""
        try:
            chunk = await self._reply.__anext__()
        except StopAsyncIteration:
            raise
        except Exception:
            self._end(None)
            raise
        if chunk.token_ids:
            now = time.monotonic()
            if self._last is None:
                self._observer.first_token(now - self._arrived)
            else:
                count = len(chunk.token_ids)
                self._observer.tokens((now - self._last) / count, count)
            self._last = now
        if chunk.completion is not None:
            self._end(chunk.completion)
        return chunk

    async def finished(self) -> Any:
        """Read to the end; the Completion."""
        async for _ in self:
            pass
        return self.completion

    def cancel(self, reason: Any = "client") -> None:
        """End it within a step; nothing where it has ended."""
        if not self._ended:
            self._reply.cancel(reason)
            self._end(None)

    def _end(self, completion: Any) -> None:
        if not self._ended:
            self._ended = True
            self.completion = completion
            self._observer.ended(time.monotonic() - self._arrived, completion)
