"""A reply as the server sees it: its pieces, and what they tell of its speed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kvfold.runtime.llm.generation import Completion, TextChunk
from kvfold.runtime.loop.ticket import CancelReason
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.server.counts.reply_metrics import ReplyMetrics
from kvfold.runtime.server.guard.admission import Admitted
from kvfold.runtime.server.served_llm import ServedReply


class TrackedReply:
    """An AsyncReply whose pieces are counted while they are read.

    Attributes:
        prompt: what it replies to.
        completion: of the finished reply; None before, and where it never finishes.
        tokens: generated so far, as far as they were read.
    """

    def __init__(
        self, reply: ServedReply, prompt: Prompt, arrived: float, admitted: Admitted, metrics: ReplyMetrics
    ) -> None:
        """A reply that was just submitted, to a request whose first byte came at `arrived`."""
        self.prompt = prompt
        self.completion: Completion | None = None
        self.tokens = 0
        self._reply = reply
        self._arrived = arrived
        self._admitted = admitted
        self._metrics = metrics
        self._last: float | None = None
        self._ended = False

    @property
    def id(self) -> int:
        """Of the request in the loop."""
        return self._reply.id

    @property
    def unread_characters(self) -> int:
        """Characters of text that nobody took yet."""
        return self._reply.unread_characters

    def __aiter__(self) -> AsyncIterator[TextChunk]:
        """Its pieces."""
        return self

    async def __anext__(self) -> TextChunk:
        """The next piece; the last one has a completion."""
        try:
            chunk = await self._reply.__anext__()
        except StopAsyncIteration:
            raise
        except Exception:
            if self._end("error"):
                self._metrics.failed()
            raise
        if chunk.token_ids:
            self._count(len(chunk.token_ids))
        completion = chunk.completion
        if completion is not None and self._end(completion.cancel_reason or completion.finish_reason):
            self.completion = completion
            self._metrics.ended(time.monotonic() - self._arrived, completion)
        return chunk

    async def finished(self) -> Completion:
        """Read to the end."""
        async for _ in self:
            pass
        assert self.completion is not None
        return self.completion

    @property
    def told(self) -> Sequence[TextChunk]:
        """Its pieces that were read before it began here."""
        return self._reply.told

    @property
    def kept(self) -> Any:
        """Of a reply that has ended: the pages for its conversation's next turn, if it has any."""
        return self._reply.kept

    def stop(self) -> None:
        """End it within a step; who reads it gets what there is, as a cancelled completion."""
        self._reply.cancel("client")

    def cancel(self, reason: CancelReason = "client") -> None:
        """End it within a step, as nobody reads it any more; nothing where it has ended."""
        if self._end(reason):
            self._reply.cancel(reason, keep=False)
            self._metrics.left()

    def _count(self, tokens: int) -> None:
        now = time.monotonic()
        self.tokens += tokens
        self._metrics.reply_tokens += tokens
        if self._last is None:
            self._admitted.started()
            self._metrics.began(now - self._arrived, len(self.prompt.token_ids))
        else:
            self._metrics.gap(now - self._last, tokens)
        self._last = now

    def _end(self, reason: str) -> bool:
        """Whether this was the end."""
        if self._ended:
            return False
        self._ended = True
        self._admitted.ended()
        self._metrics.recent.add(
            self.id, self.prompt.tenant, reason, time.monotonic() - self._arrived, self._reply.usage()
        )
        return True
